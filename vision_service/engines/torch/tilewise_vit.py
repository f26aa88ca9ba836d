"""InternViT for serving on the CPU: the function of `intern_vit.VisionModel`, a tile at a time.

The activations of one tile stay in the CPU's cache. The widest of them are computed into memory
that is taken once: tensors of some megabytes come fresh from the system each time, and then it is
a tenth of the time to give them their pages.
"""

from __future__ import annotations

import torch
from torch import nn

from vision_service.checkpoint import VisionConfig
from vision_service.engines.torch.intern_vit import Layer, VisionModel


class TilewiseVisionModel:
    """pixel_values [n, 3, S, S] -> embeddings [n, tokens_per_tile, output_size].

    A tile's embedding has the same bits whatever tiles are beside it. Works with the model's own
    weights; used by one thread at a time.
    """

    def __init__(self, model: VisionModel, config: VisionConfig) -> None:
        self._model = model
        self._config = config
        self._joint = self._memory(3 * config.hidden_size)
        self._inner = self._memory(config.intermediate_size)
        self._branch = self._memory(config.hidden_size)

    @torch.inference_mode()
    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._embeddings(values) for values in torch.split(pixel_values, 1)])

    def _memory(self, width: int) -> torch.Tensor:
        token_count = 1 + self._config.patches_per_edge**2
        return next(self._model.parameters()).new_empty(token_count, width)

    def _embeddings(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[1, 3, S, S] -> [1, tokens_per_tile, output_size]."""
        return self.encode_tokens(self._model.vision_model.embeddings(pixel_values))

    @torch.inference_mode()
    def encode_tokens(self, hidden: torch.Tensor) -> torch.Tensor:
        """Encodes a tile's embedded tokens, [1, 1 + patches, C], or a square of them; in place."""
        encoder = self._model.vision_model.encoder
        for layer in encoder.layers[: encoder.used_layer_count]:
            assert isinstance(layer, Layer)
            self._run(layer, hidden[0])
        return self._model.project(hidden)

    def _run(self, layer: Layer, hidden: torch.Tensor) -> None:
        """Adds both of the layer's branches to the hidden states, [tokens, C], in place."""
        attention, mlp = layer.attn, layer.mlp
        joint = _linear(attention.qkv, layer.norm1(hidden), self._joint[: len(hidden)])
        attended = attention.attend(joint.unsqueeze(0)).squeeze(0)
        branch = self._branch[: len(hidden)]
        hidden.addcmul_(_linear(attention.proj, attended, branch), layer.ls1)
        inner = _linear(mlp.fc1, layer.norm2(hidden), self._inner[: len(hidden)])
        torch.ops.aten.gelu_(inner)
        hidden.addcmul_(_linear(mlp.fc2, inner, branch), layer.ls2)


def _linear(layer: nn.Linear, states: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    weight = layer.weight.t()
    if layer.bias is None:  # the 6B's qkv
        return torch.mm(states, weight, out=out)
    return torch.addmm(layer.bias, states, weight, out=out)
