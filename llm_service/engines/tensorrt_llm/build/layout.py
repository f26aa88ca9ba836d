"""Which rows of the original tensors make up each tensor of a TensorRT-LLM checkpoint.

Nothing here touches a tensor: a layout is names and ranges, so it can be had for any size. The
format is what TensorRT-LLM's examples/models/core/{qwen,internlm2}/convert_checkpoint.py write.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llm_service.checkpoint import LLMConfig
from llm_service.decoders.family import ROOT, Head, Part, head_rows
from llm_service.engines.tensorrt_llm.build.target import Rank, Target

# The order of a rank's heads in TensorRT-LLM's tensor.
PARTS: tuple[Part, ...] = ("query", "key", "value")
# TensorRT-LLM's names for the norms over heads.
HEAD_NORMS: dict[Part, str] = {"query": "q_layernorm", "key": "k_layernorm"}


@dataclass(frozen=True)
class Block:
    """Consecutive rows of an original tensor.

    Attributes:
        source: the original tensor's name.
        rows: which of its rows.
        columns: which of its columns; of a vector, and where all are meant, the whole width.
    """

    source: str
    rows: range
    columns: range


@dataclass(frozen=True)
class TargetTensor:
    """One tensor of a rank's file: blocks one below the other, then rows of zeros.

    Attributes:
        name: TensorRT-LLM's name.
        blocks: at least one.
        is_vector: whether it has one dimension, and so have its sources.
        padding_row_count: rows of zeros at the end.
    """

    name: str
    blocks: tuple[Block, ...]
    is_vector: bool = False
    padding_row_count: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape on the rank."""
        row_count = sum(len(block.rows) for block in self.blocks) + self.padding_row_count
        return (row_count,) if self.is_vector else (row_count, len(self.blocks[0].columns))


def source_shapes(config: LLMConfig) -> dict[str, tuple[int, ...]]:
    """Returns the name and shape of every tensor that a conversion reads.

    They follow from the layout of a single rank, which reads every row once.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for tensor in rank_tensors(config, Target(), Rank(0, 0)):
        for block in tensor.blocks:
            row_count = max(block.rows.stop, *shapes.get(block.source, (0,))[:1])
            columns = () if tensor.is_vector else (len(block.columns),)
            shapes[block.source] = (row_count, *columns)
    return shapes


def rank_tensors(config: LLMConfig, target: Target, rank: Rank) -> list[TargetTensor]:
    """Returns the tensors of a rank's file, in the order in which they are written.

    Args:
        config: of the original model.
        target: one that `Target.check` accepts.
        rank: one of the target's.
    """
    return list(_RankLayout(config, target, rank).tensors())


class _RankLayout:
    def __init__(self, config: LLMConfig, target: Target, rank: Rank) -> None:
        self._config = config
        self._target = target
        self._rank = rank
        self._family = config.family
        self._qkv_rows = list(self._rows_of_heads())

    def tensors(self) -> Iterator[TargetTensor]:
        family = self._family
        if self._rank.pp_index == 0:
            vocabulary = range(self._config.vocabulary_size)
            yield self._matrix("transformer.vocab_embedding", ROOT + family.embedding, vocabulary)
        stage = _part(self._config.layer_count, self._rank.pp_index, self._target.pp)
        for index, layer in enumerate(stage):  # named from 0 in each stage
            source = f"{ROOT}{family.layers}.{layer}."
            yield from self._layer(f"transformer.layers.{index}.", source)
        if self._rank.pp_index == self._target.pp - 1:
            yield self._vector("transformer.ln_f", ROOT + family.norm)
            yield self._head()

    def _share_of(self, count: int) -> range:
        return _part(count, self._rank.tp_index, self._target.tp)

    def _layer(self, name: str, source: str) -> Iterator[TargetTensor]:
        family, hidden = self._family, range(self._config.hidden_size)
        ffn = self._share_of(self._config.intermediate_size)
        heads = self._share_of(self._config.head_count * self._config.head_dim)
        yield self._vector(f"{name}input_layernorm", source + family.attention_norm)
        yield from self._qkv(f"{name}attention.qkv", source)
        for part, norm in family.head_norms.items():
            target = f"{name}attention.{HEAD_NORMS[part]}"
            yield self._vector(target, source + norm, self._config.head_dim)
        yield self._matrix(
            f"{name}attention.dense", source + family.attention_output, hidden, heads
        )
        yield self._vector(f"{name}post_layernorm", source + family.feed_forward_norm)
        yield self._matrix(f"{name}mlp.fc", source + family.gate, ffn)
        yield self._matrix(f"{name}mlp.gate", source + family.up, ffn)
        yield self._matrix(f"{name}mlp.proj", source + family.down, hidden, ffn)

    def _matrix(
        self, name: str, source: str, rows: range, columns: range | None = None
    ) -> TargetTensor:
        columns = range(self._config.hidden_size) if columns is None else columns
        return TargetTensor(f"{name}.weight", (Block(f"{source}.weight", rows, columns),))

    def _vector(self, name: str, source: str, size: int | None = None) -> TargetTensor:
        rows = range(self._config.hidden_size if size is None else size)
        block = Block(f"{source}.weight", rows, range(1))
        return TargetTensor(f"{name}.weight", (block,), is_vector=True)

    def _head(self) -> TargetTensor:
        """The head, its rows filled up with zeros so that every rank has equally many."""
        vocabulary_size, tp = self._config.vocabulary_size, self._target.tp
        row_count = -(-vocabulary_size // tp)
        first = self._rank.tp_index * row_count
        rows = range(first, min(first + row_count, vocabulary_size))
        block = Block(f"{ROOT}{self._family.head}.weight", rows, range(self._config.hidden_size))
        return TargetTensor(
            "lm_head.weight", (block,), padding_row_count=row_count - len(block.rows)
        )

    def _qkv(self, name: str, source: str) -> Iterator[TargetTensor]:
        """The rank's query heads, then its key heads, then its value heads."""
        width = range(self._config.hidden_size)
        yield TargetTensor(f"{name}.weight", self._qkv_blocks(source, "weight", width))
        if self._family.has_qkv_bias:
            blocks = self._qkv_blocks(source, "bias", range(1))
            yield TargetTensor(f"{name}.bias", blocks, is_vector=True)

    def _qkv_blocks(self, source: str, kind: str, columns: range) -> tuple[Block, ...]:
        return tuple(
            Block(f"{source}{tensor}.{kind}", rows, columns) for tensor, rows in self._qkv_rows
        )

    def _rows_of_heads(self) -> Iterator[tuple[str, range]]:
        """Yields, of any layer, an original tensor and which of its rows come next."""
        config = self._config
        for part in PARTS:
            for tensor, order in self._family.qkv.items():
                if part in order.parts:
                    heads = order.heads(config.head_count, config.kv_head_count)
                    for rows in head_rows(self._heads(part), heads, config.head_dim):
                        yield tensor, rows

    def _heads(self, part: Part) -> list[Head]:
        """The rank's heads; where key/value heads are too few, the one that its queries use."""
        if part == "query":
            heads = self._share_of(self._config.head_count)
        else:
            heads = self._share_of(self._config.kv_head_count)
            heads = heads or range(heads.start, heads.start + 1)
        return [(part, index) for index in heads]


def _part(count: int, index: int, part_count: int) -> range:
    """Returns one of equal parts of range(count); an empty one where there are more parts."""
    return range(count * index // part_count, count * (index + 1) // part_count)
