"""A decode step on a CPU: all layers in one compiled program, run by a few threads together."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pickle import UnpicklingError
from typing import cast

import numpy as np
import structlog
import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.torch.block_tables import Array
from llm_service.engines.torch.compiled import programs
from llm_service.engines.torch.decoder import Decoder, Layer, Projection
from llm_service.engines.torch.kernels.base import BatchLayout
from protos.process.precision import fastest_of

logger = structlog.get_logger()

# A step of many tokens is no longer bound by reading the weights. From how many on PyTorch is
# faster depends on the CPU's units for the type: it is measured, above the first of these.
SURE_TOKEN_COUNT = 4
MEASURED_TOKEN_COUNTS = (8, 32)
MAX_TOKEN_COUNT = MEASURED_TOKEN_COUNTS[-1]
# Threads wait for each other several times a layer: less to read than this is no work for two.
BYTES_PER_THREAD = 8 * 1024**2
# How numpy sees what is stored; it knows no bfloat16.
BITS = {torch.bfloat16: torch.uint16}


class CompiledDecode:
    """Computes the logits of decodes alone, as the decoder does, but in float32 throughout."""

    def __init__(self, decoder: Decoder, kv_cache: torch.Tensor, rotation: torch.Tensor) -> None:
        """Takes the decoder, whose weights are there, and what its steps share.

        Args:
            decoder: on the CPU, of bfloat16 or float32.
            kv_cache: [layers, 2, blocks, block_size, kv_heads, head_dim].
            rotation: [length, 2, head_dim / 2] float32.
        """
        config = decoder.config
        self._shape = _shape(config, block_size=kv_cache.shape[3])
        self._vectors: list[torch.Tensor] = []  # in float32: the programs know their addresses
        self._layers = self._addresses(decoder)
        self._decoder = decoder  # and those of its matrices
        self._like = _bits(decoder.head.weight[:1])
        self._kv_cache, self._rotation = _bits(kv_cache), rotation.numpy()
        self._thread_count = _thread_count(decoder)
        self._room = _room(self._shape, self._thread_count, context_length=len(rotation))
        self._others = ThreadPoolExecutor(max(1, self._thread_count - 1), "decode")
        self._compile(kv_cache)
        self._most_token_count = self._measured_token_count(kv_cache)

    def fits(self, token_count: int) -> bool:
        """Returns whether a step of so many tokens is faster here than by the decoder."""
        return token_count <= self._most_token_count

    def run(self, embeddings: torch.Tensor, rows: Array, block_tables: Array) -> torch.Tensor:
        """Stores the tokens' keys and values, and returns their logits.

        Args:
            embeddings: [D, hidden_size], D at most MAX_TOKEN_COUNT.
            rows: of StepInputs, [3, D].
            block_tables: [D, W] int32.

        Returns:
            [D, vocabulary_size] float32.
        """
        if len(embeddings) > MAX_TOKEN_COUNT:
            raise ValueError(f"there is room for {MAX_TOKEN_COUNT} tokens, not {len(embeddings)}")
        batch = self._batch(self._shape, embeddings, rows, block_tables)
        self._compute(self._shape, self._layers, batch, self._thread_count)
        return torch.from_numpy(batch.logits)

    def _batch(
        self, shape: programs.Shape, embeddings: torch.Tensor, rows: Array, block_tables: Array
    ) -> programs.Batch:
        _, places, slots = rows
        return programs.Batch(
            hidden=embeddings.to(torch.float32, copy=True).numpy(),
            places=places,
            slots=slots,
            block_tables=block_tables,
            rotation=self._rotation,
            cache=self._kv_cache,
            logits=np.zeros((len(embeddings), shape.vocabulary_size), np.float32),
        )

    def _compute(
        self, shape: programs.Shape, layers: Array, batch: programs.Batch, size: int
    ) -> None:
        """Has so many threads compute a batch; if one fails, none waits for it."""

        team = np.zeros(programs.TEAM_SIZE, np.int64)

        def compute(rank: int) -> None:
            try:
                programs.decode_step(rank, size, team, shape, layers, self._like, batch, self._room)
            except BaseException:
                team[programs.FAILED] = 1
                raise

        others: list[Future[None]] = []
        try:
            for rank in range(1, size):
                others.append(self._others.submit(compute, rank))
            compute(0)
        except BaseException:
            team[programs.FAILED] = 1
            raise
        finally:
            wait(others)
        for other in others:
            other.result()

    def _measured_token_count(self, kv_cache: torch.Tensor) -> int:
        """Returns up to how many tokens this is faster than the decoder."""
        most = SURE_TOKEN_COUNT
        for count in MEASURED_TOKEN_COUNTS:
            own_seconds, seconds = self._layer_seconds(kv_cache, count)
            logger.info(
                "decode_measured",
                token_count=count,
                compiled_seconds=round(own_seconds, 6),
                torch_seconds=round(seconds, 6),
            )
            if own_seconds > seconds:
                break
            most = count
        return most

    def _compile(self, kv_cache: torch.Tensor) -> None:
        """Has the program compiled, or read from where it is kept, before there are threads."""
        started = time.perf_counter()
        shape, layers, batch, _ = self._trial(kv_cache, 1)
        try:
            self._compute(shape, layers, batch, size=1)
        except (OSError, EOFError, UnpicklingError) as error:
            logger.warning("decode_not_kept", error=str(error) or type(error).__name__)
            programs.forget_cache()
            self._compute(shape, layers, batch, size=1)
        logger.info("decode_compiled", seconds=round(time.perf_counter() - started, 3))

    def _layer_seconds(self, kv_cache: torch.Tensor, count: int) -> tuple[float, float]:
        """Returns what a layer takes for so many tokens, here and by the decoder.

        It is the CPU time of all threads: which of them does how much is chance.
        """
        shape, layers, batch, layout = self._trial(kv_cache, count)
        hidden = torch.from_numpy(batch.hidden).to(self._decoder.dtype)
        return fastest_of(
            lambda: self._compute(shape, layers, batch, self._thread_count),
            lambda: self._decoder.layers[0](hidden, None, kv_cache[0], layout),
            time.process_time,
        )

    def _trial(
        self, kv_cache: torch.Tensor, count: int
    ) -> tuple[programs.Shape, Array, programs.Batch, BatchLayout]:
        """Returns so many first tokens for one layer alone, as both ways take them.

        What it writes goes to the cache's last block, which is nobody's.
        """
        block, block_size = kv_cache.shape[2] - 1, kv_cache.shape[3]
        rows = np.zeros((3, count), np.int64)
        rows[2] = block * block_size
        tables = np.full((count, 1), block, np.int32)
        shape, layers = self._shape._replace(vocabulary_size=0), self._layers[[0, -1]]
        batch = self._batch(shape, torch.ones(count, shape.hidden_size), rows, tables)
        _, places, slots = torch.from_numpy(rows)
        layout = BatchLayout(
            rotation=torch.from_numpy(self._rotation)[places],
            slots=slots,
            context_lengths=(places + 1).int(),
            block_tables=torch.from_numpy(tables),
        )
        return shape, layers, batch, layout

    def _addresses(self, decoder: Decoder) -> Array:
        rows = [self._layer(cast(Layer, layer)) for layer in decoder.layers]
        norm = self._vector(decoder.norm.weight)
        head, _, scales = self._projection(decoder.head)
        nothing = dict.fromkeys(programs.Layer._fields, 0)
        last = {**nothing, "attention_norm": norm, "qkv": head, "qkv_scales": scales}
        return np.array([*rows, programs.Layer(**last)], np.int64)

    def _layer(self, layer: Layer) -> programs.Layer:
        attention, feed_forward = layer.attention, layer.feed_forward
        qkv, qkv_bias, qkv_scales = self._projection(attention.qkv)
        output, _, output_scales = self._projection(attention.output)
        gate_up, _, gate_up_scales = self._projection(feed_forward.gate_up)
        down, _, down_scales = self._projection(feed_forward.down)
        return programs.Layer(
            attention_norm=self._vector(layer.attention_norm.weight),
            qkv=qkv,
            qkv_bias=qkv_bias,
            qkv_scales=qkv_scales,
            query_norm=self._vector(attention.query_norm),
            key_norm=self._vector(attention.key_norm),
            output=output,
            output_scales=output_scales,
            feed_forward_norm=self._vector(layer.feed_forward_norm.weight),
            gate_up=gate_up,
            gate_up_scales=gate_up_scales,
            down=down,
            down_scales=down_scales,
        )

    def _projection(self, projection: Projection) -> tuple[int, int, int]:
        """Returns the addresses of the matrix, of its bias and of its scales."""
        bias, scale = self._vector(projection.bias), self._vector(projection.scale)
        return projection.weight.data_ptr(), bias, scale

    def _vector(self, values: torch.Tensor | None) -> int:
        if values is None:
            return 0
        self._vectors.append(values.detach().float().contiguous())
        return self._vectors[-1].data_ptr()


def _shape(config: LLMConfig, block_size: int) -> programs.Shape:
    return programs.Shape(
        hidden_size=config.hidden_size,
        head_count=config.head_count,
        kv_head_count=config.kv_head_count,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
        vocabulary_size=config.vocabulary_size,
        block_size=block_size,
        eps=config.rms_norm_eps,
    )


def _thread_count(decoder: Decoder) -> int:
    """Returns how many threads a step takes: all that there are, or fewer of a small model."""
    byte_count = sum(weight.nbytes for weight in decoder.parameters())
    return max(1, min(torch.get_num_threads(), byte_count // BYTES_PER_THREAD))


def _room(shape: programs.Shape, thread_count: int, context_length: int) -> programs.Room:
    heads, dim = shape.head_count, shape.head_dim
    group = heads // shape.kv_head_count
    part_count = -(-context_length // programs.PART_LENGTH)
    stride = programs.STRIDE_LENGTH
    streams, rows = programs.STREAM_COUNT, programs.MOST_CHUNK_ROWS

    def room(*sizes: int) -> programs.Floats:
        return np.zeros(sizes, np.float32)

    return programs.Room(
        queries=room(MAX_TOKEN_COUNT, heads, dim),
        sums=room(MAX_TOKEN_COUNT, heads, part_count, 2 + dim),
        active=room(MAX_TOKEN_COUNT, shape.intermediate_size),
        normed=room(thread_count, MAX_TOKEN_COUNT, shape.hidden_size),
        attended=room(thread_count, MAX_TOKEN_COUNT, heads * dim),
        heads=room(thread_count, MAX_TOKEN_COUNT, streams, max(dim, rows)),
        product=room(thread_count, MAX_TOKEN_COUNT, streams, rows),
        scores=room(thread_count, group, stride),
        rows=room(thread_count, stride, dim),
    )


def _bits(tensor: torch.Tensor) -> Array:
    """Returns the tensor's memory as numpy can see it."""
    bits = tensor.detach().view(BITS.get(tensor.dtype, tensor.dtype))
    array: Array = bits.numpy()
    return array
