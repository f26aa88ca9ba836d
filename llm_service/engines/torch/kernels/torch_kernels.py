"""The decoder's operations on any device, by what PyTorch itself has."""

from __future__ import annotations

import torch
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from llm_service.engines.torch.kernels.base import BatchLayout, HeadNorms
from llm_service.engines.torch.kernels.emulated_fp8 import EmulatedFp8
from llm_service.engines.torch.kernels.spans import attend_causally, split_spans

# Numbers of a weight that are widened at a time: they stay in a core's cache until they are used.
WIDENED_COUNT = 256 * 1024


class TorchKernels:
    """Kernels by what PyTorch itself has."""

    tile_size: int | None = None
    row_multiple = 1

    def __init__(self) -> None:
        self.fp8 = EmulatedFp8(self)

    def takes_whole_tiles(self, block_size: int, head_dim: int) -> bool:
        return False

    def project(
        self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        if weight.dtype == hidden.dtype:
            return linear(hidden, weight, bias)
        return _widened_product(hidden, weight, bias)

    def add_rms_norm(
        self, hidden: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if update is not None:
            hidden = hidden + update
        return weight * _normed(hidden, eps), hidden

    def silu_multiply(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate).mul_(up)

    def rotate_and_store(
        self,
        qkv: torch.Tensor,
        cache: torch.Tensor,
        layout: BatchLayout,
        norms: HeadNorms | None = None,
    ) -> torch.Tensor:
        cosine, sine = layout.rotation[:, None, None].unbind(-2)  # [T, 1, 1, head_dim / 2]
        heads = qkv[:, :, :-1]
        if norms is not None:
            heads = _normed(heads, norms.eps)
            heads = torch.cat((heads[:, :, :-1] * norms.query, heads[:, :, -1:] * norms.key), dim=2)
        first, second = heads.float().chunk(2, dim=-1)
        rotated = torch.cat(
            (first * cosine - second * sine, second * cosine + first * sine), dim=-1
        ).to(qkv.dtype)
        key_slots, value_slots = cache.flatten(1, 2)  # [slots, kv_heads, head_dim]
        key_slots[layout.slots] = rotated[:, :, -1]
        value_slots[layout.slots] = qkv[:, :, -1]
        return rotated[:, :, :-1].flatten(1, 2)

    def attend(self, query: torch.Tensor, cache: torch.Tensor, layout: BatchLayout) -> torch.Tensor:
        decode_count = len(layout.context_lengths)
        outputs = []
        if decode_count:
            outputs.append(_attend_decodes(query[:decode_count], cache, layout))
        for part in split_spans(query[decode_count:], cache, layout.spans):
            outputs.append(attend_causally(*part)[0].transpose(0, 1))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _widened_product(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Multiplies by a weight of another type: its numbers go through memory as they are stored."""
    product = hidden.new_empty(len(hidden), len(weight))
    row_count = max(1, WIDENED_COUNT // weight.shape[1])
    rows = hidden.new_empty(row_count, weight.shape[1])
    for begin in range(0, len(weight), row_count):
        stored = weight[begin : begin + row_count]
        wide = rows[: len(stored)].copy_(stored)
        product[:, begin : begin + row_count] = linear(hidden, wide)
    return product if bias is None else product.add_(bias)


def _normed(values: torch.Tensor, eps: float) -> torch.Tensor:
    exact = values.float()
    exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)
    return exact.to(values.dtype)


def _attend_decodes(query: torch.Tensor, cache: torch.Tensor, layout: BatchLayout) -> torch.Tensor:
    # [2, D, kv_heads, context, head_dim], padded to the longest context
    keys, values = cache[:, layout.block_tables].flatten(2, 3).transpose(2, 3)
    places = torch.arange(keys.shape[-2], device=query.device)
    mask = places < layout.context_lengths[:, None, None, None]  # [D, 1, 1, context]
    # The queries that share a key/value head stand where a longer query's tokens would.
    grouped = query.view(*keys.shape[:2], -1, query.shape[-1])  # [D, kv_heads, group, head_dim]
    return scaled_dot_product_attention(grouped, keys, values, attn_mask=mask).flatten(1, 2)
