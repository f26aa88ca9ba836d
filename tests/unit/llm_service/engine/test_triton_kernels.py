"""Triton's kernels against PyTorch's: on a CUDA device, or in Triton's interpreter on the CPU.

The latter needs the package `triton` and TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os

import pytest
import torch

from llm_service.engines.torch_engine.kernels import (
    BatchLayout,
    Kernels,
    PrefillSpan,
    TorchKernels,
    rotary_table,
)

HAS_CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_CUDA else "cpu")
DTYPES = [torch.float32, torch.bfloat16] if HAS_CUDA else [torch.float32]

pytestmark = pytest.mark.skipif(
    not HAS_CUDA and os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs a CUDA device, or TRITON_INTERPRET=1 with the package triton",
)
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    pytest.importorskip("triton")
    from llm_service.engines.torch_engine.triton_kernels import TritonKernels

    return TritonKernels()


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


@EACH_DTYPE
@pytest.mark.parametrize(
    ("kv_heads", "group", "head_dim", "block_size"),
    [(8, 4, 128, 16), (2, 7, 64, 16), (2, 6, 128, 8), (2, 2, 8, 4)],
)
def test_attention_of_decodes_and_spans(
    kernels: Kernels, dtype: torch.dtype, kv_heads: int, group: int, head_dim: int, block_size: int
) -> None:
    contexts = [1, block_size, 700 if HAS_CUDA else 150, 65]
    span_length, span_context = 9, 30
    layout = _layout(contexts, span_length, span_context, head_dim, block_size)
    block_count = int(layout.block_tables.max()) + 2 + span_context // block_size
    cache = _random(2, block_count, block_size, kv_heads, head_dim, dtype=dtype)
    token_count = len(contexts) + span_length
    qkv = _random(token_count, kv_heads, group + 2, head_dim, dtype=dtype, seed=1)
    outputs, caches = [], []
    for each in (kernels, TorchKernels()):
        caches.append(cache.clone())
        query = each.rotate_and_store(qkv.clone(), caches[-1], layout)
        outputs.append((query, each.attend(query, caches[-1], layout)))
    _assert_close(caches[0], caches[1])
    for actual, expected in zip(*outputs, strict=True):
        assert actual.shape == (token_count, kv_heads * group, head_dim)
        _assert_close(actual, expected)


def _layout(
    contexts: list[int], span_length: int, span_context: int, head_dim: int, block_size: int
) -> BatchLayout:
    """Gives every sequence blocks of its own, in an order that is not theirs in memory."""
    counts = [-(-context // block_size) for context in [*contexts, span_context]]
    blocks = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(3))
    tables = list(blocks.split(counts))
    block_tables = torch.zeros(len(contexts), max(counts), dtype=torch.int32)
    for row, table in zip(block_tables, tables, strict=False):
        row[: len(table)] = table
    span_places = range(span_context - span_length, span_context)
    owners = [*range(len(contexts)), *[len(contexts)] * span_length]
    places = [*(context - 1 for context in contexts), *span_places]
    slots = [
        int(tables[owner][place // block_size]) * block_size + place % block_size
        for owner, place in zip(owners, places, strict=True)
    ]
    table = rotary_table(head_dim, 10_000.0, max([*contexts, span_context]), DEVICE)
    return BatchLayout(
        rotation=table[torch.tensor(places).to(DEVICE)],
        slots=torch.tensor(slots).to(DEVICE),
        context_lengths=torch.tensor(contexts, dtype=torch.int32).to(DEVICE),
        block_tables=block_tables.to(DEVICE),
        spans=(PrefillSpan(span_length, span_context, tables[-1].to(DEVICE)),),
    )
