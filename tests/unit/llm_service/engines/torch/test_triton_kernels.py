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


def _assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 1e-2}[actual.dtype]
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


SHAPES = pytest.mark.parametrize(
    ("kv_heads", "group", "head_dim", "block_size"),
    [(8, 4, 128, 16), (2, 7, 64, 16), (2, 6, 128, 8), (2, 2, 8, 4), (2, 3, 16, 8), (2, 2, 12, 4)],
)
EACH_NORM = pytest.mark.parametrize("has_norms", [False, True], ids=["plain", "normed"])


@EACH_DTYPE
@SHAPES
@EACH_NORM
def test_attention_of_decodes_and_spans(
    dtype: torch.dtype, kv_heads: int, group: int, head_dim: int, block_size: int, has_norms: bool
) -> None:
    batch = _Batch([(1, 1), (1, block_size), (1, 700 if HAS_CUDA else 150), (1, 65), (9, 30)])
    layout = batch.layout(4, head_dim, block_size)
    norms = _norms(head_dim, dtype) if has_norms else None
    batch.check(_kernels(group), layout, kv_heads, group, dtype, norms)


@EACH_DTYPE
@SHAPES
@EACH_NORM
def test_attention_of_tiles(
    dtype: torch.dtype, kv_heads: int, group: int, head_dim: int, block_size: int, has_norms: bool
) -> None:
    kernels = _kernels(group)
    batch = _Batch([(1, 40), (37, 200 if HAS_CUDA else 100), (1, 1), (16, 16)])
    layout = batch.layout(1, head_dim, block_size)
    batch.check(
        kernels,
        layout,
        kv_heads,
        group,
        dtype,
        _norms(head_dim, dtype) if has_norms else None,
        batch.tiled(layout, kernels.tile_size or 0),
    )


def _norms(head_dim: int, dtype: torch.dtype) -> HeadNorms:
    query, key = (1 + _random(head_dim, dtype=dtype, seed=seed) for seed in (5, 6))
    return HeadNorms(query, key, 1e-6)


class _Batch:
    """Sequences of so many tokens at the end of contexts of so many."""

    def __init__(self, sequences: list[tuple[int, int]]) -> None:
        self._sequences = sequences
        self._tables: list[torch.Tensor] = []
        self._block_size = 0

    def layout(self, decode_count: int, head_dim: int, block_size: int) -> BatchLayout:
        """Gives every sequence blocks of its own, in an order that is not theirs in memory."""
        self._block_size = block_size
        counts = [-(-context // block_size) for _, context in self._sequences]
        blocks = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(3))
        self._tables = list(torch.split(blocks, counts))
        owners_and_places = [
            (owner, place)
            for owner, (length, context) in enumerate(self._sequences)
            for place in range(context - length, context)
        ]
        slots = [
            int(self._tables[owner][place // block_size]) * block_size + place % block_size
            for owner, place in owners_and_places
        ]
        places = torch.tensor([place for _, place in owners_and_places], device=DEVICE)
        ones = torch.arange(decode_count, dtype=torch.int32, device=DEVICE)
        return BatchLayout(
            rotation=rotary_table(head_dim, 10_000.0, 1000, DEVICE)[places],
            slots=torch.tensor(slots, device=DEVICE),
            context_lengths=(places[:decode_count] + 1).int(),
            block_tables=self._joined(decode_count),
            tiles=torch.stack([ones, torch.ones_like(ones), ones], dim=1),
            spans=tuple(
                PrefillSpan(length, context, table.to(DEVICE))
                for (length, context), table in zip(
                    self._sequences[decode_count:], self._tables[decode_count:], strict=True
                )
            ),
        )

    def tiled(self, layout: BatchLayout, tile_size: int) -> BatchLayout:
        """Returns the same batch in tiles alone, with a tile that is not used."""
        tiles, first, contexts = [], 0, []
        for row, (length, context) in enumerate(self._sequences):
            contexts += list(range(context - length + 1, context + 1))
            for begin in range(0, length, tile_size):
                tiles.append((first + begin, min(tile_size, length - begin), row))
            first += length
        return replace(
            layout,
            context_lengths=torch.tensor(contexts, dtype=torch.int32, device=DEVICE),
            block_tables=self._joined(len(self._sequences)),
            tiles=torch.tensor([*tiles, (0, 0, 0)], dtype=torch.int32, device=DEVICE),
            tile_size=tile_size,
            spans=(),
        )

    def check(
        self,
        kernels: Kernels,
        layout: BatchLayout,
        kv_heads: int,
        group: int,
        dtype: torch.dtype,
        norms: HeadNorms | None,
        own_layout: BatchLayout | None = None,
    ) -> None:
        """Compares the kernels, by their own layout of the batch or the same, with PyTorch's."""
        token_count, _, half = layout.rotation.shape
        block_count = sum(map(len, self._tables))
        cache = _random(2, block_count, self._block_size, kv_heads, 2 * half, dtype=dtype)
        qkv = _random(token_count, kv_heads, group + 2, 2 * half, dtype=dtype, seed=1)
        outputs, caches = [], []
        for each, its_layout in ((kernels, own_layout or layout), (TorchKernels(), layout)):
            caches.append(cache.clone())
            query = each.rotate_and_store(qkv.clone(), caches[-1], its_layout, norms)
            outputs.append((query, each.attend(query, caches[-1], its_layout)))
        _assert_close(caches[0], caches[1])
        for actual, expected in zip(*outputs, strict=True):
            assert actual.shape == (token_count, kv_heads * group, 2 * half)
            _assert_close(actual, expected)

    def _joined(self, count: int) -> torch.Tensor:
        width = max(map(len, self._tables[:count]))
        joined = torch.zeros(count, width, dtype=torch.int32)
        for row, table in zip(joined, self._tables[:count], strict=True):
            row[: len(table)] = table
        return joined.to(DEVICE)
