"""Attention of the sequences of which a step reads several tokens, by PyTorch's own function."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch.nn.functional import scaled_dot_product_attention

from llm_service.engines.torch.kernels.base import PrefillSpan


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
