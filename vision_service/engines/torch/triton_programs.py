"""The vision tower's operations as Triton programs; `fused_vit.TORCH_OPERATIONS` defines them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from vision_service.engines.torch.fused_vit import Norm, Operations, torch_attention

NORM_PROGRAM_COUNT = 2112


@dataclass(frozen=True)
class AttentionTuning:
    """Queries of a program, keys of a step, warps, and depth of the loads' pipeline."""

    query_rows: int
    key_rows: int
    warp_count: int
    stage_count: int


# By head size: 64 is the 300M tower's, 128 the 6B tower's.
ATTENTION_TUNINGS = {64: AttentionTuning(64, 128, 4, 2), 128: AttentionTuning(128, 64, 8, 3)}


def shifted_norm(states: torch.Tensor, norm: Norm, out: torch.Tensor | None = None) -> torch.Tensor:
    """Computes in float32."""
    row_count, width = states.shape
    if out is None:
        out = torch.empty(states.shape, dtype=states.dtype, device=states.device)
    block = triton.next_power_of_2(width)
    _norm_kernel[(min(row_count, NORM_PROGRAM_COUNT),)](
        states, norm.shift, norm.weight, norm.bias, out, row_count,
        states.stride(0), out.stride(0), norm.eps,
        width=width, block=block, num_warps=min(max(block // 512, 2), 16),
    )  # fmt: skip
    return out


def attention(qkv: torch.Tensor, tile_count: int, head_count: int) -> torch.Tensor:
    """Leaves shapes that the kernel cannot do to PyTorch."""
    head_size, patch_count = qkv.shape[1] // 3 // head_count, len(qkv) // tile_count - 1
    tuning = ATTENTION_TUNINGS.get(head_size)
    if tuning is None or patch_count % tuning.query_rows or patch_count % tuning.key_rows:
        return torch_attention(qkv, tile_count, head_count)
    return tuned_attention(tuning, qkv, tile_count, head_count)


def tuned_attention(
    tuning: AttentionTuning, qkv: torch.Tensor, tile_count: int, head_count: int
) -> torch.Tensor:
    """Attention by the kernel, for patch counts that its blocks divide."""
    row_count, width = len(qkv), qkv.shape[1] // 3
    head_size, patch_count = width // head_count, row_count // tile_count - 1
    output = qkv.new_empty(row_count, width)
    _attention_kernel[patch_count // tuning.query_rows + 1, head_count, tile_count](
        TensorDescriptor.from_tensor(qkv, [tuning.key_rows, head_size]), qkv, output,
        math.log2(math.e) * head_size**-0.5,
        width=width, head_size=head_size, patch_count=patch_count,
        query_rows=tuning.query_rows, block=tuning.key_rows,
        num_warps=tuning.warp_count, num_stages=tuning.stage_count,
    )  # fmt: skip
    return output


def linear_gelu(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Applies GELU in its tanh form, which cuBLAS computes on the way out.

    It differs from the exact one by 5e-4 at most: less than half of a bfloat16's rounding.
    """
    # It has no public name.
    return torch._addmm_activation(bias, states, weight.t(), use_gelu=True)


OPERATIONS = Operations(shifted_norm, attention, linear_gelu)


@triton.jit
def _norm_kernel(
    states,
    shift,
    weight,
    bias,
    output,
    row_count,
    row_stride,
    output_stride,
    eps,
    width: tl.constexpr,
    block: tl.constexpr,
):
    columns = tl.arange(0, block)
    inside = columns < width
    weights = tl.load(weight + columns, inside, 0.0)
    biases = weights if bias is None else tl.load(bias + columns, inside, 0.0)
    shifts = weights if shift is None else tl.load(shift + columns, inside, 0.0)
    for row in tl.range(tl.program_id(0).to(tl.int64), row_count, tl.num_programs(0)):
        values = tl.load(states + row * row_stride + columns, inside, 0.0).to(tl.float32)
        if shift is not None:
            values += shifts
        if bias is not None:
            values = tl.where(inside, values - tl.sum(values) / width, 0.0)
        values *= tl.rsqrt(tl.sum(values * values) / width + eps) * weights
        if bias is not None:
            values += biases
        values = values.to(output.dtype.element_ty)
        tl.store(output + row * output_stride + columns, values, inside)


@triton.jit
def _attend(
    patches,
    qkv,
    output,
    class_row,
    first_row,
    row_count,
    head,
    scale,
    width: tl.constexpr,
    head_size: tl.constexpr,
    patch_count: tl.constexpr,
    query_rows: tl.constexpr,
    block: tl.constexpr,
):
    columns = head * head_size + tl.arange(0, head_size)
    class_token = qkv + class_row.to(tl.int64) * 3 * width + columns
    class_key = tl.load(class_token + width).to(tl.float32)
    class_value = tl.load(class_token + 2 * width).to(tl.float32)
    rows = tl.arange(0, query_rows)
    places = (first_row + tl.minimum(rows, row_count - 1)).to(tl.int64)[:, None]
    query = tl.load(qkv + places * 3 * width + columns[None, :])
    # The class token opens the online softmax, so that the patches come in whole blocks.
    highest = tl.sum(query.to(tl.float32) * class_key[None, :], 1) * scale
    total = tl.full([query_rows], 1.0, tl.float32)
    result = tl.zeros([query_rows, head_size], tl.float32) + class_value[None, :]
    for start in range(0, patch_count, block):
        row = class_row + 1 + start
        keys = patches.load([row, width + head * head_size])
        scores = tl.dot(query, keys.T)
        higher = tl.maximum(highest, tl.max(scores, 1) * scale)
        weights = tl.math.exp2(scores * scale - higher[:, None])
        rescale = tl.math.exp2(highest - higher)
        total = total * rescale + tl.sum(weights, 1)
        values = patches.load([row, 2 * width + head * head_size])
        result = tl.dot(weights.to(values.dtype), values, result * rescale[:, None])
        highest = higher
    result = (result / total[:, None]).to(output.dtype.element_ty)
    tl.store(output + places * width + columns[None, :], result, rows[:, None] < row_count)


@triton.jit
def _attention_kernel(
    patches,
    qkv,
    output,
    scale,
    width: tl.constexpr,
    head_size: tl.constexpr,
    patch_count: tl.constexpr,
    query_rows: tl.constexpr,
    block: tl.constexpr,
):
    part, head = tl.program_id(0), tl.program_id(1)
    class_row = tl.program_id(2) * (patch_count + 1)
    if part < patch_count // query_rows:
        first_row = class_row + 1 + part * query_rows
        _attend(patches, qkv, output, class_row, first_row, query_rows, head, scale,
                width, head_size, patch_count, query_rows, block)  # fmt: skip
    else:
        # The class token's own query; a matrix product has 16 rows at least.
        _attend(patches, qkv, output, class_row, class_row, 1, head, scale,
                width, head_size, patch_count, 16, block)  # fmt: skip
