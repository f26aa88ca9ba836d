"""The decoder that InternLM2 and Qwen2 share: RMSNorm, rotary embedding, grouped attention, SiLU.

T is the number of tokens in a batch, of any number of sequences; all but attention treats them
alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import nn
from torch.nn.functional import silu

from llm_service.checkpoint import LLMConfig
from llm_service.engines.torch_engine.attention import BatchLayout, paged_attention


@dataclass(frozen=True)
class Destination:
    """Where one tensor of the checkpoint goes.

    Attributes:
        shape: the shape it has in the checkpoint.
        view: the part of a parameter that takes it; as many elements, perhaps in another shape.
    """

    shape: tuple[int, ...]
    view: torch.Tensor


def whole(parameter: torch.Tensor) -> Destination:
    """Returns the destination of a tensor that fills a parameter as it is."""
    return Destination(tuple(parameter.shape), parameter)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, the division in float32 as the reference does it."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size))
        self._eps = eps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[T, hidden] -> [T, hidden], in the same dtype."""
        exact = hidden.float()
        exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + self._eps)
        return self.weight * exact.to(hidden.dtype)


class Rotation:
    """The rotary embedding of a batch's positions: angle of pair i = position x theta^(-2i/d).

    The pairs are (i, i + d/2), the "half-rotation" or neox form; computed in float32.
    """

    def __init__(self, positions: torch.Tensor, head_dim: int, theta: float) -> None:
        exponents = torch.arange(0, head_dim, 2, device=positions.device) / head_dim
        angles = positions[:, None].float() / theta**exponents  # [T, head_dim / 2]
        self._cos = angles.cos()[:, None]  # [T, 1, head_dim / 2]
        self._sin = angles.sin()[:, None]

    def apply(self, heads: torch.Tensor) -> torch.Tensor:
        """[T, heads, head_dim] -> [T, heads, head_dim], in the same dtype."""
        first, second = heads.float().chunk(2, dim=-1)
        rotated = (
            first * self._cos - second * self._sin,
            second * self._cos + first * self._sin,
        )
        return torch.cat(rotated, dim=-1).to(heads.dtype)


class Attention(nn.Module):
    """Grouped-query attention with one fused projection.

    The rows of `qkv` are ordered by key/value head: for each, its query heads, its key head, its
    value head; `grouped` says the same as a shape. InternLM2 stores them so.
    """

    def __init__(self, config: LLMConfig, qkv_bias: bool) -> None:
        super().__init__()
        self.group_size = config.head_count // config.kv_head_count
        self.grouped = (config.kv_head_count, self.group_size + 2, config.head_dim)
        row_count = (config.head_count + 2 * config.kv_head_count) * config.head_dim
        self.qkv = nn.Linear(config.hidden_size, row_count, bias=qkv_bias)
        self.output = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self, hidden: torch.Tensor, rotation: Rotation, cache: torch.Tensor, layout: BatchLayout
    ) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]; cache is the layer's, see `paged_attention`."""
        qkv = self.qkv(hidden).unflatten(-1, self.grouped)  # [T, kv_heads, group + 2, head_dim]
        query = qkv[:, :, : self.group_size].flatten(1, 2)
        key, value = qkv[:, :, -2], qkv[:, :, -1]
        mixed = paged_attention(rotation.apply(query), rotation.apply(key), value, cache, layout)
        output: torch.Tensor = self.output(mixed.flatten(1))
        return output


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x)); the rows of `gate_up` are gate's, then up's."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]"""
        gate, up = self.gate_up(hidden).chunk(2, dim=-1)
        output: torch.Tensor = self.down(silu(gate) * up)
        return output


class Layer(nn.Module):
    """Attention and feed-forward, each on the normalised input and added to it."""

    def __init__(self, config: LLMConfig, qkv_bias: bool) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, qkv_bias)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(
        self, hidden: torch.Tensor, rotation: Rotation, cache: torch.Tensor, layout: BatchLayout
    ) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]"""
        normalised = self.attention_norm(hidden)
        hidden = hidden + self.attention(normalised, rotation, cache, layout)
        output: torch.Tensor = hidden + self.feed_forward(self.feed_forward_norm(hidden))
        return output


class Decoder(nn.Module, ABC):
    """The whole language model; a subclass says how its checkpoints name the tensors.

    Attributes:
        qkv_bias: whether query, key and value have biases.
        embedding_name: the embedding's tensor in an original checkpoint.
        head_name: the output head's; the released checkpoints are untied, so it is always read.
    """

    qkv_bias: ClassVar[bool]
    embedding_name: ClassVar[str]
    head_name: ClassVar[str]

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, self.qkv_bias) for _ in range(config.layer_count))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocabulary_size, bias=False)

    def forward(
        self, embeddings: torch.Tensor, kv_cache: torch.Tensor, layout: BatchLayout
    ) -> torch.Tensor:
        """Computes the final hidden states of a batch and stores its keys and values.

        Args:
            embeddings: [T, hidden_size], of tokens and of virtual tokens.
            kv_cache: [layers, 2, blocks, block_size, kv_heads, head_dim]; written to.
            layout: the batch.

        Returns:
            [T, hidden_size]; `head` turns rows of it into logits.
        """
        hidden = embeddings
        rotation = Rotation(layout.positions, self.config.head_dim, self.config.rope_theta)
        for layer, cache in zip(self.layers, kv_cache, strict=True):
            hidden = layer(hidden, rotation, cache, layout)
        output: torch.Tensor = self.norm(hidden)
        return output

    def destinations(self) -> dict[str, Destination]:
        """Returns where each tensor of an original checkpoint goes, by its name there."""
        named = {
            self.embedding_name: whole(self.embedding.weight),
            "language_model.model.norm.weight": whole(self.norm.weight),
            self.head_name: whole(self.head.weight),
        }
        for index, layer in enumerate(self.layers):
            for name, destination in self.layer_destinations(cast(Layer, layer)).items():
                named[f"language_model.model.layers.{index}.{name}"] = destination
        return named

    @staticmethod
    @abstractmethod
    def layer_destinations(layer: Layer) -> dict[str, Destination]:
        """Returns where the tensors of one layer go, by their names within the layer."""
