"""InternViT for serving on CUDA: the function of `intern_vit.VisionModel`, with fewer passes.

What a GPU spends on such a tower besides its matrix products is moving activations. So here

- layer scales are folded into the weights before them, and the residual is added by the matrix
  product itself: `hidden += branch @ (scale * weight)`;
- the biases of these products are not added at all. Their sum so far, which is the same vector for
  every token, is a `shift` that the next norm adds as it reads;
- normalising the pixels is folded into the patch embedding, which reads whole numbers, exact in
  bfloat16, from -128 to 127;
- the memory-bound operations are kernels (`Operations`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional as F

from vision_service.checkpoint import VisionConfig
from vision_service.engines.torch.intern_vit import Attention, Layer, VisionModel, pixel_shuffle

PIXEL_CENTRE = 128
# Rows of a matrix whose bytes are a multiple of 16 are read by the tensor cores' fast path.
COLUMN_MULTIPLE = 8


@dataclass(frozen=True)
class Norm:
    """The norm of `states + shift`: LayerNorm, or RMSNorm where there is no bias.

    The vectors are [width], float32 or wider; no shift is a shift of nothing.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    eps: float
    shift: torch.Tensor | None = None


class NormFunction(Protocol):
    """states [rows, width], each row contiguous -> the normed states, in `out` if that is given."""

    def __call__(
        self, states: torch.Tensor, norm: Norm, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Computes in float32 at least."""
        ...


@dataclass(frozen=True)
class Operations:
    """The operations that have kernels; `TORCH_OPERATIONS` says what each computes.

    Attributes:
        norm: see NormFunction and Norm.
        attention: (qkv [tiles x tokens, 3 width], tiles, heads) -> [tiles x tokens, width]; full
            attention within each tile, with the usual scale of head_size**-0.5.
        linear_gelu: (states [rows, width], weight [out, width], bias [out]) -> [rows, out].
    """

    norm: NormFunction
    attention: Callable[[torch.Tensor, int, int], torch.Tensor]
    linear_gelu: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def torch_norm(states: torch.Tensor, norm: Norm, out: torch.Tensor | None = None) -> torch.Tensor:
    values, shape = states.to(norm.weight.dtype), norm.weight.shape
    if norm.shift is not None:
        values = values + norm.shift
    if norm.bias is None:
        values = F.rms_norm(values, shape, norm.weight, norm.eps)
    else:
        values = F.layer_norm(values, shape, norm.weight, norm.bias, norm.eps)
    return values.to(states.dtype) if out is None else out.copy_(values)


def torch_attention(qkv: torch.Tensor, tile_count: int, head_count: int) -> torch.Tensor:
    row_count = len(qkv)
    # [tiles, tokens, 3, heads, size] -> three of [tiles, heads, tokens, size], none copied
    parts = qkv.view(tile_count, row_count // tile_count, 3, head_count, -1).permute(2, 0, 3, 1, 4)
    query, key, value = parts
    attended = F.scaled_dot_product_attention(query, key, value)
    return attended.transpose(1, 2).reshape(row_count, -1)


def torch_linear_gelu(
    states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Applies the exact (erf) GELU."""
    return F.gelu(F.linear(states, weight, bias))


TORCH_OPERATIONS = Operations(torch_norm, torch_attention, torch_linear_gelu)


class FusedVisionModel:
    """uint8 tiles [n, 3, S, S] -> embeddings [n, tokens_per_tile, output_size].

    Holds a VisionModel's weights on a device and in a type of its own. They are folded there, in
    float32, before they get that type.
    """

    def __init__(
        self,
        model: VisionModel,
        config: VisionConfig,
        operations: Operations,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        place = _Placement(device, dtype)
        self._config = config
        self._operations = operations
        self._embedding = _FusedEmbedding(model, config, place)
        self._layers, shift = _fused_layers(model, config, place)
        self._projector = _FusedProjector(model, shift, place)

    @torch.inference_mode()
    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Encodes tiles that are on the model's device."""
        operations, tile_count = self._operations, len(tiles)
        hidden = self._embedding(tiles)  # [n, 1 + patches, C]
        rows = hidden.flatten(0, 1)
        for layer in self._layers:
            layer.add_to(rows, tile_count, operations)
        tokens = pixel_shuffle(hidden[:, 1:], self._config.ps_version)  # [n, tokens_per_tile, 4 C]
        embeddings = self._projector(tokens.flatten(0, 1), operations)
        return embeddings.view(tile_count, self._config.tokens_per_tile, -1)


@dataclass(frozen=True)
class _Placement:
    """Where the weights go, and as what."""

    device: torch.device
    dtype: torch.dtype

    def matrix(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.detach().to(self.device).to(self.dtype)

    def optional(self, bias: torch.Tensor | None) -> torch.Tensor | None:
        return None if bias is None else self.matrix(bias)

    def wide(self, parameter: torch.Tensor) -> torch.Tensor:
        """Returns the values in float32, or as they are if they are wider."""
        wide_type = torch.promote_types(parameter.dtype, torch.float32)
        return parameter.detach().to(self.device).to(wide_type)

    def scaled(self, parameter: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Multiplies the rows of a weight, or the elements of a bias, by a layer's scale."""
        wide_scale = self.wide(scale)
        factor = wide_scale[:, None] if parameter.dim() == 2 else wide_scale
        return self.wide(parameter) * factor

    def norm(self, module: nn.Module, shift: torch.Tensor | None = None) -> Norm:
        assert isinstance(module, nn.LayerNorm | nn.RMSNorm)
        assert module.eps is not None
        bias = self.wide(module.bias) if isinstance(module, nn.LayerNorm) else None
        return Norm(self.wide(module.weight), bias, module.eps, shift)


class _FusedEmbedding:
    """Patches as vectors, the class token in front, positions added."""

    def __init__(self, model: VisionModel, config: VisionConfig, place: _Placement) -> None:
        source = model.vision_model.embeddings
        kernel, bias = _patch_kernel(model, config, place)
        start = place.wide(source.position_embedding[0]).clone()  # [1 + patches, C]
        start[0] += place.wide(source.class_embedding[0, 0])
        start[1:] += bias
        self._edge, self._patch_size = config.patches_per_edge, config.patch_size
        padding = -len(kernel) % COLUMN_MULTIPLE
        self._kernel = place.matrix(F.pad(kernel, (0, 0, 0, padding)))  # [pixels, C]
        self._start = place.matrix(start)

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Returns [n, 1 + patches, C]."""
        hidden = self._start.repeat(len(tiles), 1, 1)
        kernels = self._kernel.expand(len(tiles), -1, -1)
        hidden[:, 1:].baddbmm_(self._patches(tiles), kernels)
        return hidden

    def _patches(self, tiles: torch.Tensor) -> torch.Tensor:
        """Returns the patches' pixels, centred: [n, patches, 3 x patch_size^2, padded]."""
        count, edge, size = len(tiles), self._edge, self._patch_size
        squares = tiles.view(count, 3, edge, size, edge, size).permute(0, 2, 4, 1, 3, 5)
        pixels = self._kernel.new_zeros(count, edge * edge, len(self._kernel))
        inside = pixels[:, :, : 3 * size * size].view(count, edge, edge, 3, size, size)
        inside.copy_(squares).sub_(PIXEL_CENTRE)
        return pixels


def _patch_kernel(
    model: VisionModel, config: VisionConfig, place: _Placement
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns [3 x patch_size^2, C] and [C]: the convolution of centred whole-number pixels.

    With x = (p + 128) / 255, w (x - mean) / std = (w / 255 std) p + w (128 / 255 - mean) / std.
    """
    source = model.vision_model.embeddings.patch_embedding
    weight = place.wide(source.weight)  # [C, 3, size, size]
    mean, std = (weight.new_tensor(v).view(3, 1, 1) for v in (config.mean, config.std))
    constant = (weight * ((PIXEL_CENTRE / 255 - mean) / std)).sum(dim=(1, 2, 3))
    assert source.bias is not None
    return (weight / (255 * std)).flatten(1).t(), place.wide(source.bias) + constant


@dataclass(frozen=True)
class _FusedLayer:
    """One layer; `projection` and `down` are scaled by the layer's scales, transposed."""

    head_count: int
    norm1: Norm
    qkv_weight: torch.Tensor
    qkv_bias: torch.Tensor | None
    qk_norms: tuple[Norm, ...]
    projection: torch.Tensor
    norm2: Norm
    up_weight: torch.Tensor
    up_bias: torch.Tensor
    down: torch.Tensor

    def add_to(self, hidden: torch.Tensor, tile_count: int, operations: Operations) -> None:
        """Adds both branches, but not their last biases, to the hidden states in place."""
        qkv = F.linear(operations.norm(hidden, self.norm1), self.qkv_weight, self.qkv_bias)
        for part, norm in zip(qkv.chunk(3, dim=1), self.qk_norms, strict=False):
            operations.norm(part, norm, out=part)
        hidden.addmm_(operations.attention(qkv, tile_count, self.head_count), self.projection)
        normed = operations.norm(hidden, self.norm2)
        hidden.addmm_(operations.linear_gelu(normed, self.up_weight, self.up_bias), self.down)


def _fused_layers(
    model: VisionModel, config: VisionConfig, place: _Placement
) -> tuple[list[_FusedLayer], torch.Tensor]:
    """Returns the layers that run, and the shift behind the last of them, [C]."""
    shift = torch.zeros(config.hidden_size, device=place.device)
    layers = []
    for layer in _used_layers(model):
        after_attention = shift + place.scaled(layer.attn.proj.bias, layer.ls1)
        after_mlp = after_attention + place.scaled(layer.mlp.fc2.bias, layer.ls2)
        layers.append(_fused_layer(layer, shift, after_attention, place))
        shift = after_mlp
    return layers, shift


def _fused_layer(
    layer: Layer, shift: torch.Tensor, after_attention: torch.Tensor, place: _Placement
) -> _FusedLayer:
    attention, mlp = layer.attn, layer.mlp
    return _FusedLayer(
        head_count=attention.head_count,
        norm1=place.norm(layer.norm1, shift),
        qkv_weight=place.matrix(attention.qkv.weight),
        qkv_bias=place.optional(attention.qkv.bias),
        qk_norms=_qk_norms(attention, place),
        projection=place.matrix(place.scaled(attention.proj.weight, layer.ls1)).t(),
        norm2=place.norm(layer.norm2, after_attention),
        up_weight=place.matrix(mlp.fc1.weight),
        up_bias=place.matrix(mlp.fc1.bias),
        down=place.matrix(place.scaled(mlp.fc2.weight, layer.ls2)).t(),
    )


class _FusedProjector:
    """mlp1; its norm adds the layers' last shift to the four patches of a token."""

    def __init__(self, model: VisionModel, shift: torch.Tensor, place: _Placement) -> None:
        norm, up, _, down = model.mlp1
        assert isinstance(up, nn.Linear)
        assert isinstance(down, nn.Linear)
        self._norm = place.norm(norm, shift.repeat(up.in_features // len(shift)))
        self._up_weight, self._up_bias = place.matrix(up.weight), place.matrix(up.bias)
        self._down_weight, self._down_bias = place.matrix(down.weight), place.matrix(down.bias)

    def __call__(self, tokens: torch.Tensor, operations: Operations) -> torch.Tensor:
        """[rows, 4 C] -> [rows, output_size]."""
        normed = operations.norm(tokens, self._norm)
        inner = operations.linear_gelu(normed, self._up_weight, self._up_bias)
        return F.linear(inner, self._down_weight, self._down_bias)


def _used_layers(model: VisionModel) -> Iterator[Layer]:
    encoder = model.vision_model.encoder
    for layer in encoder.layers[: encoder.used_layer_count]:
        assert isinstance(layer, Layer)
        yield layer


def _qk_norms(attention: Attention, place: _Placement) -> tuple[Norm, ...]:
    if isinstance(attention.q_norm, nn.Identity):
        return ()
    return place.norm(attention.q_norm), place.norm(attention.k_norm)
