"""Triton's kernels against PyTorch's: on a CUDA device, or in Triton's interpreter on the CPU.

The latter needs the package `triton` and TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from llm_service.engines.torch.kernels.base import (
    BatchLayout,
    HeadNorms,
    Kernels,
    PrefillSpan,
    TileSet,
    rotary_table,
)
from llm_service.engines.torch.kernels.torch_kernels import TorchKernels

HAS_CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_CUDA else "cpu")
DTYPES = [torch.float32, torch.bfloat16] if HAS_CUDA else [torch.float32]

pytestmark = [] if os.environ.get("TRITON_INTERPRET") == "1" else [pytest.mark.gpu]
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def _kernels(group_size: int) -> Kernels:
    pytest.importorskip("triton")
    from llm_service.engines.torch.kernels.triton_kernels import TritonKernels

    return TritonKernels(group_size)


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return _kernels(4)


def _random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def _assert_close(actual: torch.Tensor, expected: torch.Tensor, factor: int = 1) -> None:
    tolerance = factor * {torch.float32: 2e-6, torch.bfloat16: 1e-2}[actual.dtype]
    error = (actual.double() - expected.double()).norm() / expected.double().norm()
    assert error < tolerance


@EACH_DTYPE
@pytest.mark.parametrize("has_update", [False, True])
def test_norm(kernels: Kernels, dtype: torch.dtype, has_update: bool) -> None:
    hidden, weight = _random(5, 896, dtype=dtype), _random(896, dtype=dtype, seed=1)
    update = _random(5, 896, dtype=dtype, seed=2) if has_update else None
    for actual, expected in zip(
        kernels.add_rms_norm(hidden, update, weight, 1e-5),
        TorchKernels().add_rms_norm(hidden, update, weight, 1e-5),
        strict=True,
    ):
        _assert_close(actual, expected)


@EACH_DTYPE
@pytest.mark.parametrize(("in_size", "out_size"), [(896, 67), (4864, 5)])
@pytest.mark.parametrize("token_count", [1, 3])
@pytest.mark.parametrize("has_bias", [False, True])
def test_projection(
    kernels: Kernels,
    dtype: torch.dtype,
    in_size: int,
    out_size: int,
    token_count: int,
    has_bias: bool,
) -> None:
    hidden, weight = (
        _random(token_count, in_size, dtype=dtype),
        _random(out_size, in_size, dtype=dtype),
    )
    bias = _random(out_size, dtype=dtype, seed=1) * 30 if has_bias else None
    actual = kernels.project(hidden, weight, bias)
    _assert_close(actual, TorchKernels().project(hidden, weight, bias))


@EACH_DTYPE
def test_silu(kernels: Kernels, dtype: torch.dtype) -> None:
    gate_up = _random(3, 2 * 4864, dtype=dtype) * 3
    _assert_close(kernels.silu_multiply(gate_up), TorchKernels().silu_multiply(gate_up))


@EACH_DTYPE
def test_launches_of_one_token_wait_for_each_other(kernels: Kernels, dtype: torch.dtype) -> None:
    first = _layers_of_one_token(kernels, dtype)
    _assert_close(first, _layers_of_one_token(TorchKernels(), dtype), factor=5)
    for _ in range(50 if HAS_CUDA else 0):  # what is read too early differs from time to time
        assert torch.equal(_layers_of_one_token(kernels, dtype), first)


def _layers_of_one_token(kernels: Kernels, dtype: torch.dtype) -> torch.Tensor:
    """Returns what some layers without attention make of a token, [1, 256]."""
    weight = _random(256, dtype=dtype, seed=1)
    gate_up, down = _random(640, 256, dtype=dtype, seed=2), _random(256, 320, dtype=dtype, seed=3)
    hidden, update = _random(1, 256, dtype=dtype), None
    for _ in range(8 if HAS_CUDA else 2):
        normed, hidden = kernels.add_rms_norm(hidden, update, weight, 1e-5)
        product = kernels.silu_multiply(kernels.project(normed, gate_up / 16, None))
        update = kernels.project(product, down / 16, None)
    assert update is not None
    return hidden + update


SHAPES = pytest.mark.parametrize(
    ("kv_heads", "group", "head_dim", "block_size"),
    [(8, 4, 128, 16), (2, 7, 64, 16), (2, 6, 128, 8), (2, 2, 8, 4), (2, 3, 16, 8), (2, 2, 12, 4)],
)
EACH_NORM = pytest.mark.parametrize("has_norms", [False, True], ids=["plain", "normed"])


@EACH_DTYPE
@SHAPES
@EACH_NORM
def test_attention_of_tiles(
    dtype: torch.dtype, kv_heads: int, group: int, head_dim: int, block_size: int, has_norms: bool
) -> None:
    batch = _Batch([(1, 40), (37, 200 if HAS_CUDA else 100), (1, 1), (16, 16)])
    norms = _norms(head_dim, dtype) if has_norms else None
    batch.check(_kernels(group), kv_heads, group, head_dim, block_size, dtype, norms)


@EACH_DTYPE
@SHAPES
def test_attention_of_decodes(
    dtype: torch.dtype, kv_heads: int, group: int, head_dim: int, block_size: int
) -> None:
    batch = _Batch([(1, 1), (1, block_size), (1, 700 if HAS_CUDA else 150), (1, 65)], 4)
    batch.check(_kernels(group), kv_heads, group, head_dim, block_size, dtype)


@EACH_DTYPE
@pytest.mark.parametrize(
    ("kv_heads", "group", "head_dim", "block_size"),
    [(8, 4, 128, 64), (2, 7, 64, 64), (2, 6, 128, 128), (2, 2, 16, 64)],
)
def test_attention_of_whole_tiles_beside_decodes(
    dtype: torch.dtype, kv_heads: int, group: int, head_dim: int, block_size: int
) -> None:
    kernels = _kernels(group)
    assert kernels.takes_whole_tiles(block_size, head_dim)
    sequences = [(1, 40), (1, 129), (70, 200), (3, 131), (64, 64), (1, 64), (2, 2), (65, 65)]
    batch = _Batch(sequences, 2)
    batch.check(kernels, kv_heads, group, head_dim, block_size, dtype)


@pytest.mark.parametrize(("block_size", "head_dim"), [(16, 128), (96, 64), (64, 12), (64, 96)])
def test_tiles_are_split_where_descriptors_cannot_read(block_size: int, head_dim: int) -> None:
    assert not _kernels(4).takes_whole_tiles(block_size, head_dim)


def _norms(head_dim: int, dtype: torch.dtype) -> HeadNorms:
    query, key = (1 + _random(head_dim, dtype=dtype, seed=seed) for seed in (5, 6))
    return HeadNorms(query, key, 1e-6)


class _Batch:
    """Sequences of so many tokens at the end of contexts of so many; decodes first."""

    def __init__(self, sequences: list[tuple[int, int]], decode_count: int = 0) -> None:
        self._sequences = sequences
        self._decode_count = decode_count

    def check(
        self,
        kernels: Kernels,
        kv_heads: int,
        group: int,
        head_dim: int,
        block_size: int,
        dtype: torch.dtype,
        norms: HeadNorms | None = None,
    ) -> None:
        """Compares the kernels with PyTorch's: these read spans, the others tiles."""
        counts = [-(-context // block_size) for _, context in self._sequences]
        # In an order that is not theirs in memory; one block belongs to nobody.
        blocks = torch.randperm(1 + sum(counts), generator=torch.Generator().manual_seed(3))
        *tables, unused = torch.split(blocks, [*counts, 1])
        spans = self._layout(head_dim, block_size, tables)
        tiles = self._tiled(spans, tables, kernels.tile_size or 0)
        cache = _random(2, len(blocks), block_size, kv_heads, head_dim, dtype=dtype)
        token_count = len(spans.slots)
        qkv = _random(token_count, kv_heads, group + 2, head_dim, dtype=dtype, seed=1)
        outputs, caches = [], []
        for each, layout in ((kernels, tiles), (TorchKernels(), spans)):
            caches.append(cache.clone())
            query = each.rotate_and_store(qkv.clone(), caches[-1], layout, norms)
            # Behind a context may be anything; PyTorch's kernels alone rely on numbers there.
            self._fill_rest(caches[-1], tables, unused, torch.nan if each is kernels else 0.0)
            outputs.append((query, each.attend(query, caches[-1], layout)))
            self._fill_rest(caches[-1], tables, unused, 0.0)
        _assert_close(caches[0], caches[1])
        for actual, expected in zip(*outputs, strict=True):
            assert actual.shape == (token_count, kv_heads * group, head_dim)
            _assert_close(actual, expected)

    def _layout(self, head_dim: int, block_size: int, tables: list[torch.Tensor]) -> BatchLayout:
        owners_and_places = [
            (owner, place)
            for owner, (length, context) in enumerate(self._sequences)
            for place in range(context - length, context)
        ]
        slots = [
            int(tables[owner][place // block_size]) * block_size + place % block_size
            for owner, place in owners_and_places
        ]
        places = torch.tensor([place for _, place in owners_and_places], device=DEVICE)
        count = self._decode_count
        return BatchLayout(
            rotation=rotary_table(head_dim, 10_000.0, 1000, DEVICE)[places],
            slots=torch.tensor(slots, device=DEVICE),
            context_lengths=(places[:count] + 1).int(),
            block_tables=self._joined(tables[:count]),
            spans=tuple(
                PrefillSpan(length, context, table.to(DEVICE))
                for (length, context), table in zip(
                    self._sequences[count:], tables[count:], strict=True
                )
            ),
        )

    def _tiled(self, layout: BatchLayout, tables: list[torch.Tensor], size: int) -> BatchLayout:
        """Returns the same batch in tiles alone, with tiles that are not used."""
        tiles, first, contexts = [], self._decode_count, []
        for length, context in self._sequences:
            contexts += list(range(context - length + 1, context + 1))
        for row, (length, _) in enumerate(self._sequences[first:], first):
            for begin in range(0, length, size):
                tiles.append((first + begin, min(size, length - begin), row))
            first += length
        decodes = [(place, 1, place) for place in range(self._decode_count)]
        return replace(
            layout,
            context_lengths=torch.tensor(contexts, dtype=torch.int32, device=DEVICE),
            block_tables=self._joined(tables),
            tile_sets=tuple(
                TileSet(torch.tensor([*some, (0, 0, 0)], dtype=torch.int32, device=DEVICE), *form)
                for some, form in ((decodes, (1, False, 4)), (tiles, (size, bool(decodes))))
                if some
            ),
            spans=(),
        )

    def _fill_rest(
        self, cache: torch.Tensor, tables: list[torch.Tensor], unused: torch.Tensor, value: float
    ) -> None:
        """Writes a value where no token's key or value is."""
        cache[:, unused] = value
        for (_, context), table in zip(self._sequences, tables, strict=True):
            rest = context % cache.shape[2]
            if rest:
                cache[:, table[-1], rest:] = value

    def _joined(self, tables: list[torch.Tensor]) -> torch.Tensor:
        joined = torch.zeros(len(tables), max(map(len, tables), default=0), dtype=torch.int32)
        for row, table in zip(joined, tables, strict=True):
            row[: len(table)] = table
        return joined.to(DEVICE)
