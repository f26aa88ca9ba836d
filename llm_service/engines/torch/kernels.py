"""The decoder's operations, for any device.

T is the number of tokens in a batch, of any number of sequences.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from llm_service.checkpoint import LLMConfig


@dataclass(frozen=True)
class PrefillSpan:
    """Several consecutive tokens of one sequence.

    Attributes:
        query_length: its tokens in this batch, the last ones of its context.
        context_length: its tokens up to and including those.
        blocks: [block count] int64, the cache blocks that hold its context, in order.
    """

    query_length: int
    context_length: int
    blocks: torch.Tensor


@dataclass(frozen=True)
class BatchLayout:
    """Where the T tokens of a batch stand, in their sequences and in the cache.

    The first D tokens are in tiles, the rest belong to the spans. A tile of one token is a decode.

    Attributes:
        rotation: [T, 2, head_dim / 2] float32, cosine and sine of each token's angles.
        slots: [T] int64, each token's place in the cache: block x block size + offset.
        context_lengths: [D] int32, tokens of each token's sequence up to itself, and included.
        block_tables: [S, W] int32, the blocks of each tiled sequence's context, then any blocks.
        tiles: [N, 3] int32: a token, how many of its sequence's tokens from it on, the sequence's
            row of `block_tables`; with 0 tokens the tile is not used.
        tile_size: most tokens of a tile. With 1, tile i is token i, of sequence i.
        spans: the other sequences, in their order.
    """

    rotation: torch.Tensor
    slots: torch.Tensor
    context_lengths: torch.Tensor
    block_tables: torch.Tensor
    tiles: torch.Tensor
    tile_size: int = 1
    spans: tuple[PrefillSpan, ...] = ()


class Kernels(Protocol):
    """The operations; all tensors are on one device, activations in one dtype."""

    @property
    def tile_size(self) -> int | None:
        """Tokens of a tile; None for kernels that know decodes and spans alone, no CUDA graphs."""
        ...

    def project(
        self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns hidden x weight^T + bias: [T, in] x [out, in] -> [T, out]."""
        ...

    def add_rms_norm(
        self, hidden: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the RMS norm of hidden + update, and hidden + update: both [T, hidden_size].

        x / sqrt(mean(x^2) + eps) in float32, rounded, then times weight, as the reference does it.
        """
        ...

    def silu_multiply(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Returns silu(gate) x up, [T, width], of gate and up side by side, [T, 2 x width]."""
        ...

    def rotate_and_store(
        self, qkv: torch.Tensor, cache: torch.Tensor, layout: BatchLayout
    ) -> torch.Tensor:
        """Rotates queries and keys by their positions, and stores keys and values.

        Args:
            qkv: [T, kv_heads, group + 2, head_dim]: for each key/value head its `group` query
                heads, its key, its value.
            cache: [2, blocks, block_size, kv_heads, head_dim], one layer's keys and values.
            layout: the batch.

        Returns:
            [T, heads, head_dim], the rotated queries. The pairs of an angle are (i, i + d/2), the
            "half-rotation" or neox form; computed in float32.
        """
        ...

    def attend(self, query: torch.Tensor, cache: torch.Tensor, layout: BatchLayout) -> torch.Tensor:
        """Lets every token attend to its own past, which is stored already, itself included.

        Args:
            query: [T, heads, head_dim]; query head i reads key/value head i // group.
            cache: as above.
            layout: the batch.

        Returns:
            [T, heads, head_dim]
        """
        ...


def rotary_table(head_dim: int, theta: float, length: int, device: torch.device) -> torch.Tensor:
    """Returns [length, 2, head_dim / 2] float32: cosine and sine of position x theta^(-2i/d)."""
    exponents = torch.arange(0, head_dim, 2, device=device) / head_dim
    angles = torch.arange(length, device=device)[:, None].float() / theta**exponents
    return torch.stack([angles.cos(), angles.sin()], dim=1)


class TorchKernels:
    """See Kernels: what PyTorch itself has, on any device."""

    tile_size: int | None = None

    def project(
        self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """See Kernels."""
        return linear(hidden, weight, bias)

    def add_rms_norm(
        self, hidden: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See Kernels."""
        if update is not None:
            hidden = hidden + update
        exact = hidden.float()
        exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)
        return weight * exact.to(hidden.dtype), hidden

    def silu_multiply(self, gate_up: torch.Tensor) -> torch.Tensor:
        """See Kernels."""
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate) * up

    def rotate_and_store(
        self, qkv: torch.Tensor, cache: torch.Tensor, layout: BatchLayout
    ) -> torch.Tensor:
        """See Kernels."""
        cosine, sine = layout.rotation[:, None, None].unbind(-2)  # [T, 1, 1, head_dim / 2]
        first, second = qkv[:, :, :-1].float().chunk(2, dim=-1)
        rotated = torch.cat(
            (first * cosine - second * sine, second * cosine + first * sine), dim=-1
        ).to(qkv.dtype)
        key_slots, value_slots = cache.flatten(1, 2)  # [slots, kv_heads, head_dim]
        key_slots[layout.slots] = rotated[:, :, -1]
        value_slots[layout.slots] = qkv[:, :, -1]
        return rotated[:, :, :-1].flatten(1, 2)

    def attend(self, query: torch.Tensor, cache: torch.Tensor, layout: BatchLayout) -> torch.Tensor:
        """See Kernels."""
        decode_count = len(layout.context_lengths)
        outputs = []
        if decode_count:
            outputs.append(_attend_decodes(query[:decode_count], cache, layout))
        for part in split_spans(query[decode_count:], cache, layout.spans):
            outputs.append(attend_causally(*part)[0].transpose(0, 1))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend_decodes(query: torch.Tensor, cache: torch.Tensor, layout: BatchLayout) -> torch.Tensor:
    # [2, D, kv_heads, context, head_dim], padded to the longest context
    keys, values = cache[:, layout.block_tables].flatten(2, 3).transpose(2, 3)
    places = torch.arange(keys.shape[-2], device=query.device)
    mask = places < layout.context_lengths[:, None, None, None]  # [D, 1, 1, context]
    # The queries that share a key/value head stand where a longer query's tokens would.
    grouped = query.view(*keys.shape[:2], -1, query.shape[-1])  # [D, kv_heads, group, head_dim]
    return scaled_dot_product_attention(grouped, keys, values, attn_mask=mask).flatten(1, 2)


def split_spans(
    query: torch.Tensor, cache: torch.Tensor, spans: tuple[PrefillSpan, ...]
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yields each span's queries, keys and values as attention takes them.

    [1, heads, query_length, head_dim], and twice [1, kv_heads, context_length, head_dim].
    """
    queries = torch.split(query, [span.query_length for span in spans])
    for part, span in zip(queries, spans, strict=True):
        context = cache[:, span.blocks].flatten(1, 2)[:, : span.context_length]
        keys, values = context.transpose(1, 2)[:, None]
        yield part.transpose(0, 1)[None], keys, values


def attend_causally(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attention of what `split_spans` yields; the queries are the last tokens of the context."""
    query_length, context_length = query.shape[2], keys.shape[2]
    if query_length == context_length:
        return scaled_dot_product_attention(query, keys, values, is_causal=True, enable_gqa=True)
    mask = _lower_right_mask(query_length, context_length, query.device)
    return scaled_dot_product_attention(query, keys, values, attn_mask=mask, enable_gqa=True)


@lru_cache(maxsize=4)  # all layers of a step use the same ones
def _lower_right_mask(query_length: int, context_length: int, device: torch.device) -> torch.Tensor:
    shape = (query_length, context_length)
    mask = torch.ones(shape, dtype=torch.bool, device=device)
    return mask.tril(context_length - query_length)


def kernels_for(device: torch.device, config: LLMConfig) -> Kernels:
    """Returns the fastest kernels for a device: Triton's on CUDA, where PyTorch brings it."""
    if device.type == "cuda":
        try:
            from llm_service.engines.torch.triton_kernels import TritonKernels
        except ImportError:
            return TorchKernels()
        return TritonKernels(config.head_count // config.kv_head_count)
    return TorchKernels()
