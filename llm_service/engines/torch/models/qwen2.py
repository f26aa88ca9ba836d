"""Qwen2 (1B, 4B, 38B, 78B): query, key and value apart, each with a bias."""

from __future__ import annotations

from typing import cast

import torch

from llm_service.engines.torch.models.decoder import (
    Attention,
    Decoder,
    Destination,
    Layer,
    whole,
)


class Qwen2(Decoder):
    """The decoder with Qwen2's tensor names."""

    qkv_bias = True
    embedding_name = "language_model.model.embed_tokens.weight"
    head_name = "language_model.lm_head.weight"

    @staticmethod
    def layer_destinations(layer: Layer) -> dict[str, Destination]:
        """See Decoder."""
        gate, up = layer.feed_forward.gate_up.weight.chunk(2)
        return {
            "input_layernorm.weight": whole(layer.attention_norm.weight),
            **_qkv_destinations(layer.attention),
            "self_attn.o_proj.weight": whole(layer.attention.output.weight),
            "post_attention_layernorm.weight": whole(layer.feed_forward_norm.weight),
            "mlp.gate_proj.weight": whole(gate),
            "mlp.up_proj.weight": whole(up),
            "mlp.down_proj.weight": whole(layer.feed_forward.down.weight),
        }


def _qkv_destinations(attention: Attention) -> dict[str, Destination]:
    group = attention.group_size
    places = {"q": slice(0, group), "k": slice(group, group + 1), "v": slice(group + 1, group + 2)}
    weight = attention.qkv.weight.view(*attention.grouped, -1)  # shape: grouped, then hidden
    bias = cast(torch.Tensor, attention.qkv.bias).view(attention.grouped)
    named: dict[str, Destination] = {}
    for letter, place in places.items():
        named[f"self_attn.{letter}_proj.weight"] = _rows_of(weight[:, place])
        named[f"self_attn.{letter}_proj.bias"] = _rows_of(bias[:, place])
    return named


def _rows_of(view: torch.Tensor) -> Destination:
    """Returns the destination of a tensor that has the view's heads as consecutive rows."""
    row_count = view.shape[:3].numel()
    return Destination((row_count, *view.shape[3:]), view)
