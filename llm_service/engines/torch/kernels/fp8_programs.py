"""Triton programs around products in float8; `triton_fp8` launches them.

A row is quantised by its largest number, which becomes 448: a program has a whole row.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from llm_service.engines.torch.kernels import fp8
from llm_service.engines.torch.kernels.triton_programs import await_inputs

LARGEST: tl.constexpr = tl.constexpr(fp8.LARGEST_FP8)
SMALLEST_SCALE: tl.constexpr = tl.constexpr(fp8.SMALLEST_SCALE)


@triton.jit
def quantise(hidden, values, scales, width, padded: tl.constexpr, overlaps: tl.constexpr):
    if overlaps:
        await_inputs()
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
    overlaps: tl.constexpr,
):
    """As `triton_programs.add_rms_norm`, whose rounded result is quantised."""
    if overlaps:
        await_inputs()
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
def silu_multiply(gate_up, values, scales, width, padded: tl.constexpr, overlaps: tl.constexpr):
    """As `triton_programs.silu_multiply`, whose rounded result is quantised."""
    if overlaps:
        await_inputs()
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
def project_few(
    values,
    scales,
    weight,
    weight_scales,
    bias,
    output,
    partial,
    arrivals,
    token_count,
    row_count,
    width,
    has_bias: tl.constexpr,
    tokens: tl.constexpr,
    rows: tl.constexpr,
    step: tl.constexpr,
    is_even: tl.constexpr,
    is_halved: tl.constexpr,
    ahead: tl.constexpr,
    overlaps: tl.constexpr,
):
    """One program some rows of the weight, or one half of them, times a few tokens.

    `rows` divide `row_count`; with `is_even` the step divides the width, or its half. Of two halves
    the later one adds both: the earlier one has left its sums in `partial`, and `arrivals` tells
    which is which, zeros at rest. With `overlaps` a program starts while the launch before still
    runs, and fetches `ahead` lines of each row meanwhile.
    """
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    half = tl.program_id(1)
    begin, end = 0, width
    if is_halved:
        middle = tl.minimum(tl.cdiv(width, 2 * step) * step, width)
        begin = tl.multiple_of(half * middle, 16)  # so wide are loads
        end = middle + half * (width - middle)
    column = tl.arange(0, step)
    row_begin = weight + row.to(tl.int64)[:, None] * width
    factors = row_begin + column[None, :]
    if overlaps:
        gdc_launch_dependents()
        if ahead > 0:
            line = tl.arange(0, ahead)
            _prefetch(row_begin + begin + line[None, :] * 128)
    factor_scale = tl.load(weight_scales + row)
    if overlaps:
        gdc_wait()
    token = tl.arange(0, tokens)
    is_token = token < token_count
    multiplied = values + token[None, :] * width + column[:, None]
    total = tl.zeros([rows, tokens], tl.float32)
    for start in range(begin, end, step):
        if is_even:
            # The weights pass the cache by: there are more of them than it holds.
            factor = tl.load(factors + start, eviction_policy="evict_first")
            value = tl.load(multiplied + start, is_token[None, :], 0.0)
        else:
            mask = start + column < end
            factor = tl.load(factors + start, mask[None, :], 0.0, eviction_policy="evict_first")
            value = tl.load(multiplied + start, is_token[None, :] & mask[:, None], 0.0)
        total = tl.dot(factor, value, total)
    place = token[None, :] * row_count + row[:, None]
    is_last = True
    if is_halved:
        tl.store(partial + half * token_count * row_count + place, total, is_token[None, :])
        tl.debug_barrier()  # all of it is there before it is told
        is_last = tl.atomic_add(arrivals + tl.program_id(0), 1, sem="acq_rel") == 1
    if is_last:
        if is_halved:
            tl.store(arrivals + tl.program_id(0), 0)
            other = partial + (1 - half) * token_count * row_count + place
            total += tl.load(other, is_token[None, :], 0.0, cache_modifier=".cg")
        result = total * factor_scale[:, None] * tl.load(scales + token, is_token, 0.0)[None, :]
        if has_bias:
            result += tl.load(bias + row).to(tl.float32)[:, None]
        tl.store(output + place, result, is_token[None, :])


@triton.jit
def _prefetch(pointers):
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [pointers],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
