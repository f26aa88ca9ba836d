"""The decoder that all families share: RMSNorm, rotary embedding, grouped attention, SiLU.

T is the number of tokens in a batch, of any number of sequences; all but attention treats them
alike.
"""

from __future__ import annotations

import torch
from torch import nn

from llm_service.checkpoint import LLMConfig
from llm_service.engines.torch.kernels.base import BatchLayout, HeadNorms, Kernels
from llm_service.engines.torch.kernels.fp8 import FP8, QuantisedRows


class Projection(nn.Module):
    """One linear map: its weight [out, in], its bias [out] or None.

    Attributes:
        weight: may be of another type than what it is multiplied with, see Kernels.
        scale: [out, 1] float32, of an int8 or float8 weight: what to multiply its rows by; else
            None.
    """

    def __init__(self, kernels: Kernels, in_size: int, out_size: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_size, in_size))
        self.bias = nn.Parameter(torch.empty(out_size)) if bias else None
        self.scale: torch.Tensor | None = None
        self._kernels = kernels

    def store_as(self, dtype: torch.dtype) -> None:
        """Gives the weight, which is empty yet, another type."""
        self.weight = nn.Parameter(self.weight.to(dtype), requires_grad=False)
        if dtype in (torch.int8, FP8):
            scale = torch.empty(len(self.weight), 1, device=self.weight.device)
            self.scale = nn.Parameter(scale, requires_grad=False)

    @property
    def is_fp8(self) -> bool:
        """Whether the weight is in float8, and what it is multiplied with becomes so too."""
        return self.weight.dtype == FP8

    def forward(self, hidden: torch.Tensor | QuantisedRows) -> torch.Tensor:
        """[T, in] -> [T, out]; rows that are quantised already are for a float8 weight."""
        if self.scale is not None and self.is_fp8:
            fp8 = self._kernels.fp8
            rows = hidden if isinstance(hidden, QuantisedRows) else fp8.quantise(hidden)
            return fp8.project(rows, self.weight, self.scale, self.bias)
        assert isinstance(hidden, torch.Tensor)
        if self.scale is None:
            return self._kernels.project(hidden, self.weight, self.bias)
        product = self._kernels.project(hidden, self.weight, None)
        product = (product.float() * self.scale[:, 0]).to(hidden.dtype)
        return product if self.bias is None else product + self.bias


class RMSNorm(nn.Module):
    """The weight of one RMS norm, and how it is applied; see Kernels.add_rms_norm."""

    def __init__(self, config: LLMConfig, kernels: Kernels) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.hidden_size))
        self._eps = config.rms_norm_eps
        self._kernels = kernels

    def forward(
        self, hidden: torch.Tensor, update: torch.Tensor | None, *, in_fp8: bool = False
    ) -> tuple[torch.Tensor | QuantisedRows, torch.Tensor]:
        """[T, hidden] twice -> the norm of their sum, and the sum."""
        kernels = self._kernels.fp8 if in_fp8 else self._kernels
        return kernels.add_rms_norm(hidden, update, self.weight, self._eps)


class Attention(nn.Module):
    """Grouped-query attention with one fused projection.

    The rows of `qkv` are ordered by key/value head (GROUPED): for each, its query heads, its key
    head, its value head. `query_norm` and `key_norm`, [head_dim], are None in families without.
    """

    def __init__(self, config: LLMConfig, kernels: Kernels) -> None:
        super().__init__()
        group_size = config.head_count // config.kv_head_count
        self._grouped = (config.kv_head_count, group_size + 2, config.head_dim)
        row_count = (config.head_count + 2 * config.kv_head_count) * config.head_dim
        bias = config.family.has_qkv_bias
        self.qkv = Projection(kernels, config.hidden_size, row_count, bias=bias)
        self.query_norm, self.key_norm = (
            nn.Parameter(torch.empty(config.head_dim)) if part in config.family.head_norms else None
            for part in ("query", "key")
        )
        width = config.head_count * config.head_dim
        self.output = Projection(kernels, width, config.hidden_size, bias=False)
        self._eps = config.rms_norm_eps
        self._kernels = kernels

    def forward(
        self,
        hidden: torch.Tensor | QuantisedRows,
        cache: torch.Tensor,
        layout: BatchLayout,
        wanted_rows: torch.Tensor | None,
    ) -> torch.Tensor:
        """[T, hidden] -> [T or W, hidden]; cache is the layer's, see Kernels."""
        qkv = self.qkv(hidden).unflatten(-1, self._grouped)  # [T, kv_heads, group + 2, head_dim]
        query = self._kernels.rotate_and_store(qkv, cache, layout, self._norms())
        attended = self._kernels.attend(query, cache, layout).flatten(1)
        output: torch.Tensor = self.output(_rows(attended, wanted_rows))
        return output

    def _norms(self) -> HeadNorms | None:
        if self.query_norm is None or self.key_norm is None:
            return None
        return HeadNorms(self.query_norm, self.key_norm, self._eps)


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x)); the rows of `gate_up` are gate's, then up's."""

    def __init__(self, config: LLMConfig, kernels: Kernels) -> None:
        super().__init__()
        width = config.intermediate_size
        self.gate_up = Projection(kernels, config.hidden_size, 2 * width, bias=False)
        self.down = Projection(kernels, width, config.hidden_size, bias=False)
        self._kernels = kernels

    def forward(self, hidden: torch.Tensor | QuantisedRows) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]"""
        kernels = self._kernels.fp8 if self.down.is_fp8 else self._kernels
        output: torch.Tensor = self.down(kernels.silu_multiply(self.gate_up(hidden)))
        return output


class Layer(nn.Module):
    """Attention and feed-forward, each on the normalised sum of all that came before."""

    def __init__(self, config: LLMConfig, kernels: Kernels) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config, kernels)
        self.attention = Attention(config, kernels)
        self.feed_forward_norm = RMSNorm(config, kernels)
        self.feed_forward = FeedForward(config, kernels)

    def forward(
        self,
        hidden: torch.Tensor,
        update: torch.Tensor | None,
        cache: torch.Tensor,
        layout: BatchLayout,
        wanted_rows: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[T, hidden] twice -> the stream, and what is still to be added to it.

        Both are [T, hidden], or the W wanted rows of it. All keys and values are stored.
        """
        in_fp8 = self.attention.qkv.is_fp8
        normalised, hidden = self.attention_norm(hidden, update, in_fp8=in_fp8)
        update = self.attention(normalised, cache, layout, wanted_rows)
        hidden = _rows(hidden, wanted_rows)
        normalised, hidden = self.feed_forward_norm(hidden, update, in_fp8=in_fp8)
        return hidden, self.feed_forward(normalised)


class Decoder(nn.Module):
    """The whole language model."""

    def __init__(self, config: LLMConfig, kernels: Kernels) -> None:
        super().__init__()
        self.config = config
        self.kernels = kernels
        # Not a new one, which draws its weight: on the meta device that is 2 s of imports.
        weight = torch.empty(config.vocabulary_size, config.hidden_size)
        self.embedding: nn.Embedding = nn.Embedding.from_pretrained(weight)  # type: ignore[no-untyped-call] # torch leaves it untyped
        self.layers = nn.ModuleList(Layer(config, kernels) for _ in range(config.layer_count))
        self.norm = RMSNorm(config, kernels)
        multiple = kernels.row_multiple
        head_rows = -(-config.vocabulary_size // multiple) * multiple
        self.head = Projection(kernels, config.hidden_size, head_rows, bias=False)

    @property
    def dtype(self) -> torch.dtype:
        """The type of activations and KV cache."""
        return self.norm.weight.dtype

    @property
    def is_fp8(self) -> bool:
        """Whether the layers' matrices are in float8."""
        return any(isinstance(it, Projection) and it.is_fp8 for it in self.layers.modules())

    def store_as(
        self, matrices: torch.dtype, embedding: torch.dtype, head: torch.dtype | None = None
    ) -> None:
        """Gives the weights, which are empty yet, other types than the activations'.

        Args:
            matrices: of all that is multiplied.
            embedding: of the embedding.
            head: of the head, by default as of other matrices.
        """
        for module in self.layers.modules():
            if isinstance(module, Projection):
                module.store_as(matrices)
        self.head.store_as(head or matrices)
        weight = self.embedding.weight.to(embedding)
        self.embedding.weight = nn.Parameter(weight, requires_grad=False)

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[T] -> [T, hidden_size]"""
        embedded: torch.Tensor = self.embedding(token_ids)
        return embedded.to(self.dtype)

    def forward(
        self,
        embeddings: torch.Tensor,
        kv_cache: torch.Tensor,
        layout: BatchLayout,
        wanted_rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Computes the final hidden states of a batch and stores its keys and values.

        Args:
            embeddings: [T, hidden_size], of tokens and of virtual tokens.
            kv_cache: [layers, 2, blocks, block_size, kv_heads, head_dim]; written to.
            layout: the batch.
            wanted_rows: [W] int64, the tokens whose states are wanted; None: all. The last layer
                computes no more of them.

        Returns:
            [W or T, hidden_size], which `logits` takes.
        """
        hidden, update = embeddings, None
        *layers, last = self.layers
        for layer, cache in zip(layers, kv_cache[:-1], strict=True):
            hidden, update = layer(hidden, update, cache, layout)
        hidden, update = last(hidden, update, kv_cache[-1], layout, wanted_rows)
        output: torch.Tensor = self.norm(hidden, update)[0]
        return output

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, hidden_size] -> [N, vocabulary_size]"""
        output: torch.Tensor = self.head(hidden)[:, : self.config.vocabulary_size]
        return output


def _rows(hidden: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    return hidden if rows is None else hidden[rows]
