"""Triton's float8 kernels against the emulation: see test_triton_kernels."""

from __future__ import annotations

import os

import pytest
import torch

from llm_service.engines.torch.kernels.fp8 import FP8, LARGEST_FP8, Fp8Kernels, QuantisedRows
from llm_service.engines.torch.kernels.torch_kernels import TorchKernels

HAS_CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_CUDA else "cpu")
DTYPE = torch.bfloat16 if HAS_CUDA else torch.float32
# A number between two of float8 may be rounded to either, if the scale's last bit differs.
STEP = 2**-3
WIDTHS = pytest.mark.parametrize("width", [32, 896, 4864])
EMULATED = TorchKernels().fp8

pytestmark = [] if os.environ.get("TRITON_INTERPRET") == "1" else [pytest.mark.gpu]


@pytest.fixture(scope="module")
def fp8() -> Fp8Kernels:
    pytest.importorskip("triton")
    from llm_service.engines.torch.kernels.triton_fp8 import TritonFp8

    return TritonFp8()


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, DTYPE)


def _assert_same(actual: QuantisedRows, expected: QuantisedRows) -> None:
    """All numbers are within a step of float8, nearly all of them are equal."""
    assert (actual.values.dtype, actual.scales.dtype) == (FP8, torch.float32)
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual.scales, expected.scales, rtol=2**-7, atol=0)
    ours, theirs = (rows.values.float() for rows in (actual, expected))
    if not HAS_CUDA:  # the interpreter rounds to float8 without a carry into the exponent
        ours = torch.where(2 * ours == theirs, theirs, ours)
    assert ((ours - theirs).abs() <= STEP * theirs.abs() + 2**-9).all()
    assert (ours != theirs).float().mean() < 0.02


@WIDTHS
def test_rows(fp8: Fp8Kernels, width: int) -> None:
    hidden = _random(5, width) * torch.tensor([[1.0], [1e4], [1e-6], [0], [30]]).to(DEVICE, DTYPE)
    rows = fp8.quantise(hidden)
    _assert_same(rows, EMULATED.quantise(hidden))
    largest = rows.values.float().abs().amax(1)
    assert largest.tolist() == [LARGEST_FP8, LARGEST_FP8, LARGEST_FP8, 0, LARGEST_FP8]


@pytest.mark.gpu  # the interpreter makes numbers of NaN
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_has_such_products_and_leaves_the_others(
    fp8: Fp8Kernels, number: float
) -> None:
    hidden = _random(3, 64)
    hidden[1, 7] = number
    weight, scale = _weight(32, 64)
    for some, expected in ((slice(0, 3), [True, False, True]), (slice(1, 2), [False])):
        rows = fp8.quantise(hidden[some])
        finite = fp8.project(rows, weight, scale, None).isfinite()
        assert finite.all(1).tolist() == finite.any(1).tolist() == expected


@WIDTHS
@pytest.mark.parametrize("has_update", [False, True])
def test_norm(fp8: Fp8Kernels, width: int, has_update: bool) -> None:
    hidden, weight = _random(5, width), _random(width, seed=1)
    update = _random(5, width, seed=2) if has_update else None
    actual, total = fp8.add_rms_norm(hidden, update, weight, 1e-5)
    expected, expected_total = EMULATED.add_rms_norm(hidden, update, weight, 1e-5)
    _assert_same(actual, expected)
    torch.testing.assert_close(total, expected_total)


@WIDTHS
def test_silu(fp8: Fp8Kernels, width: int) -> None:
    gate_up = _random(3, 2 * width) * 3
    _assert_same(fp8.silu_multiply(gate_up), EMULATED.silu_multiply(gate_up))


@pytest.mark.parametrize(("in_size", "out_size"), [(896, 64), (4864, 16), (144, 9728), (16, 48)])
@pytest.mark.parametrize("token_count", [1, 3, 17, 40, 64, *((65, 300) if HAS_CUDA else ())])
@pytest.mark.parametrize("has_bias", [False, True])
def test_projection(
    fp8: Fp8Kernels, in_size: int, out_size: int, token_count: int, has_bias: bool
) -> None:
    rows = EMULATED.quantise(_random(token_count, in_size))
    weight, scale = _weight(out_size, in_size)
    bias = _random(out_size, seed=1) * 30 if has_bias else None
    actual = fp8.project(rows, weight, scale, bias)
    assert actual.dtype == DTYPE
    exact = (rows.values.double() * rows.scales) @ (weight.double() * scale).T
    expected = exact if bias is None else exact + bias
    error = (actual.double() - expected).norm() / expected.norm()
    assert error < (3e-3 if HAS_CUDA else 2e-6)


def _weight(out_size: int, in_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = EMULATED.quantise(_random(out_size, in_size, seed=3))
    return rows.values, rows.scales
