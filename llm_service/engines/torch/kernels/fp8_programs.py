"""Triton programs around products in float8; `fp8_kernels` launches them.

A row is quantised by its largest number, which becomes 448: a program has a whole row.
"""

import triton
import triton.language as tl

LARGEST: tl.constexpr = tl.constexpr(448.0)
# Of a row of zeros, which stays one.
SMALLEST_SCALE: tl.constexpr = tl.constexpr(1e-30)


@triton.jit
def quantise(hidden, values, scales, width, padded: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, padded)
    mask = column < width
    exact = tl.load(hidden + row * width + column, mask, other=0.0).to(tl.float32)
    _store(exact, row, column, mask, values, scales, width)


@triton.jit
def add_rms_norm(
    hidden,
    update,
    weight,
    values,
    scales,
    total,
    eps,
    width,
    has_update: tl.constexpr,
    padded: tl.constexpr,
):
    """As `triton_programs.add_rms_norm`, whose rounded result is quantised."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, padded)
    mask = column < width
    x = tl.load(hidden + row * width + column, mask, other=0.0)
    if has_update:
        x += tl.load(update + row * width + column, mask, other=0.0)
        tl.store(total + row * width + column, x, mask)
    exact = x.to(tl.float32)
    exact *= tl.rsqrt(tl.sum(exact * exact) / width + eps)
    normed = exact.to(x.dtype) * tl.load(weight + column, mask, other=0.0)
    _store(normed.to(tl.float32), row, column, mask, values, scales, width)


@triton.jit
def silu_multiply(gate_up, values, scales, width, padded: tl.constexpr):
    """As `triton_programs.silu_multiply`, whose rounded result is quantised."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, padded)
    mask = column < width
    gate = tl.load(gate_up + row * 2 * width + column, mask, other=0.0)
    up = tl.load(gate_up + row * 2 * width + width + column, mask, other=0.0)
    exact = gate.to(tl.float32)
    activated = (exact * tl.sigmoid(exact)).to(gate.dtype)
    _store((activated * up).to(tl.float32), row, column, mask, values, scales, width)


@triton.jit
def _store(exact, row, column, mask, values, scales, width):
    scale = tl.maximum(tl.max(tl.abs(exact)) / LARGEST, SMALLEST_SCALE)
    tl.store(scales + row, scale)
    tl.store(values + row * width + column, (exact / scale).to(values.dtype.element_ty), mask)


@triton.jit
def project_one(
    values,
    scales,
    weight,
    weight_scales,
    bias,
    output,
    row_count,
    width,
    has_bias: tl.constexpr,
    rows: tl.constexpr,
    step: tl.constexpr,
):
    """One program some outputs: the products of one token's values and rows of the weight."""
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    is_row = row < row_count
    begin = row.to(tl.int64)[:, None] * width
    total = tl.zeros([rows, step], tl.float32)
    for start in range(0, width, step):
        column = start + tl.arange(0, step)
        mask = column < width
        # The weights pass the cache by: there are more of them than it holds.
        factor = tl.load(
            weight + begin + column[None, :],
            is_row[:, None] & mask[None, :],
            0.0,
            eviction_policy="evict_first",
        )
        value = tl.load(values + column, mask, 0.0).to(tl.float32)
        total += factor.to(tl.float32) * value[None, :]
    result = tl.sum(total, 1) * (tl.load(scales) * tl.load(weight_scales + row, is_row, 0.0))
    if has_bias:
        result += tl.load(bias + row, is_row, 0.0).to(tl.float32)
    tl.store(output + row, result, is_row)
