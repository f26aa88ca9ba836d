"""Attention of a flattened batch over the paged KV cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class SequenceSpan:
    """One sequence's part of a batch.

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

    Attributes:
        positions: [T] int64, each token's place in its sequence, from 0.
        slots: [T] int64, each token's place in the cache: block x block size + offset.
        spans: the sequences, in the order of their tokens.
    """

    positions: torch.Tensor
    slots: torch.Tensor
    spans: list[SequenceSpan]


def paged_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cache: torch.Tensor,
    layout: BatchLayout,
) -> torch.Tensor:
    """Stores the batch's keys and values, then lets every token attend to its own past.

    Args:
        query: [T, heads, head_dim]; query head i reads key/value head i // (heads / kv_heads).
        key: [T, kv_heads, head_dim].
        value: [T, kv_heads, head_dim].
        cache: [2, blocks, block_size, kv_heads, head_dim], one layer's keys and values.
        layout: the batch.

    Returns:
        [T, heads, head_dim]
    """
    key_slots, value_slots = cache.flatten(1, 2)  # [slots, kv_heads, head_dim]
    key_slots[layout.slots] = key
    value_slots[layout.slots] = value
    queries = torch.split(query, [span.query_length for span in layout.spans])
    outputs = [_attend(part, cache, span) for part, span in zip(queries, layout.spans, strict=True)]
    return torch.cat(outputs)


def _attend(query: torch.Tensor, cache: torch.Tensor, span: SequenceSpan) -> torch.Tensor:
    context = cache[:, span.blocks].flatten(1, 2)[:, : span.context_length]
    keys, values = context.transpose(1, 2)  # [kv_heads, context, head_dim]
    output = scaled_dot_product_attention(
        query.transpose(0, 1)[None],  # [1, heads, query, head_dim]
        keys[None],
        values[None],
        # The queries are the last tokens of the context: aligned at the lower right.
        attn_mask=causal_lower_right(span.query_length, span.context_length),
        enable_gqa=True,
    )
    return output[0].transpose(0, 1)
