"""Which rows of the original tensors make up each tensor of a TensorRT-LLM checkpoint.

Nothing here touches a tensor: a layout is names and ranges, so it can be had for any size. The
format is what TensorRT-LLM's examples/models/core/{qwen,internlm2}/convert_checkpoint.py write.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llm_service.checkpoint import LLMConfig
from llm_service.engines.tensorrt_llm.build.target import Rank, Target

ROOT = "language_model."


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


@dataclass(frozen=True)
class SourceNames:
    """What an architecture calls the tensors that both have; see NAMES."""

    embedding: str
    head: str
    input_norm: str
    attention_output: str
    post_norm: str
    silu: str
    linear: str
    down: str


NAMES = {
    "Qwen2ForCausalLM": SourceNames(
        embedding="model.embed_tokens",
        head="lm_head",
        input_norm="input_layernorm",
        attention_output="self_attn.o_proj",
        post_norm="post_attention_layernorm",
        silu="mlp.gate_proj",
        linear="mlp.up_proj",
        down="mlp.down_proj",
    ),
    "InternLM2ForCausalLM": SourceNames(
        embedding="model.tok_embeddings",
        head="output",
        input_norm="attention_norm",
        attention_output="attention.wo",
        post_norm="ffn_norm",
        silu="feed_forward.w1",
        linear="feed_forward.w3",
        down="feed_forward.w2",
    ),
}


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
        self._names = NAMES[config.architecture]

    def tensors(self) -> Iterator[TargetTensor]:
        if self._rank.pp_index == 0:
            vocabulary = range(self._config.vocabulary_size)
            embedding = self._names.embedding
            yield self._matrix("transformer.vocab_embedding", ROOT + embedding, vocabulary)
        stage = _part(self._config.layer_count, self._rank.pp_index, self._target.pp)
        for index, layer in enumerate(stage):  # named from 0 in each stage
            yield from self._layer(f"transformer.layers.{index}.", f"{ROOT}model.layers.{layer}.")
        if self._rank.pp_index == self._target.pp - 1:
            yield self._vector("transformer.ln_f", f"{ROOT}model.norm")
            yield self._head()

    def _share_of(self, count: int) -> range:
        return _part(count, self._rank.tp_index, self._target.tp)

    def _layer(self, name: str, source: str) -> Iterator[TargetTensor]:
        names, hidden = self._names, range(self._config.hidden_size)
        ffn = self._share_of(self._config.intermediate_size)
        heads = self._share_of(self._config.hidden_size)
        yield self._vector(f"{name}input_layernorm", source + names.input_norm)
        yield from self._qkv(f"{name}attention.qkv", source)
        yield self._matrix(f"{name}attention.dense", source + names.attention_output, hidden, heads)
        yield self._vector(f"{name}post_layernorm", source + names.post_norm)
        yield self._matrix(f"{name}mlp.fc", source + names.silu, ffn)
        yield self._matrix(f"{name}mlp.gate", source + names.linear, ffn)
        yield self._matrix(f"{name}mlp.proj", source + names.down, hidden, ffn)

    def _matrix(
        self, name: str, source: str, rows: range, columns: range | None = None
    ) -> TargetTensor:
        columns = range(self._config.hidden_size) if columns is None else columns
        return TargetTensor(f"{name}.weight", (Block(f"{source}.weight", rows, columns),))

    def _vector(self, name: str, source: str) -> TargetTensor:
        block = Block(f"{source}.weight", range(self._config.hidden_size), range(1))
        return TargetTensor(f"{name}.weight", (block,), is_vector=True)

    def _head(self) -> TargetTensor:
        """The head, its rows filled up with zeros so that every rank has equally many."""
        vocabulary_size, tp = self._config.vocabulary_size, self._target.tp
        row_count = -(-vocabulary_size // tp)
        first = self._rank.tp_index * row_count
        rows = range(first, min(first + row_count, vocabulary_size))
        block = Block(f"{ROOT}{self._names.head}.weight", rows, range(self._config.hidden_size))
        return TargetTensor(
            "lm_head.weight", (block,), padding_row_count=row_count - len(block.rows)
        )

    def _qkv(self, name: str, source: str) -> Iterator[TargetTensor]:
        """The rank's query heads, then its key heads, then its value heads."""
        columns = range(self._config.hidden_size)
        if self._config.architecture == "InternLM2ForCausalLM":
            wqkv = f"{source}attention.wqkv.weight"
            blocks = tuple(Block(wqkv, rows, columns) for rows in self._wqkv_rows())
            yield TargetTensor(f"{name}.weight", blocks)
            return
        rows_of = {
            "q": _scaled(self._query_heads, self._config.head_dim),
            "k": _scaled(self._kv_heads, self._config.head_dim),
            "v": _scaled(self._kv_heads, self._config.head_dim),
        }
        for kind, width in (("weight", columns), ("bias", range(1))):
            blocks = tuple(
                Block(f"{source}self_attn.{letter}_proj.{kind}", rows, width)
                for letter, rows in rows_of.items()
            )
            yield TargetTensor(f"{name}.{kind}", blocks, is_vector=kind == "bias")

    @property
    def _query_heads(self) -> range:
        return self._share_of(self._config.head_count)

    @property
    def _kv_heads(self) -> range:
        """The rank's key/value heads; with fewer heads than ranks, the one that its queries use."""
        heads = self._share_of(self._config.kv_head_count)
        return heads or range(heads.start, heads.start + 1)

    def _wqkv_rows(self) -> Iterator[range]:
        """InternLM2's rows go by group: a group's query heads, its key head, its value head."""
        group_size = self._config.head_count // self._config.kv_head_count
        queries, groups = self._query_heads, self._kv_heads
        for group in groups:
            first = max(queries.start, group * group_size)
            last = min(queries.stop, (group + 1) * group_size)
            # Before them stand the key head and the value head of each earlier group.
            yield _scaled(range(first + 2 * group, last + 2 * group), self._config.head_dim)
        for offset in (group_size, group_size + 1):  # all keys, then all values
            for group in groups:
                place = group * (group_size + 2) + offset
                yield _scaled(range(place, place + 1), self._config.head_dim)


def _part(count: int, index: int, part_count: int) -> range:
    """Returns one of equal parts of range(count); an empty one where there are more parts."""
    return range(count * index // part_count, count * (index + 1) // part_count)


def _scaled(heads: range, head_dim: int) -> range:
    """Returns the rows of heads."""
    return range(heads.start * head_dim, heads.stop * head_dim)
