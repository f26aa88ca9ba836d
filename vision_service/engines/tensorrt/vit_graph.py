"""The vision tower with its projector as an ONNX graph: uint8 tiles in, image embeddings out.

It mirrors the torch engine's `intern_vit.py` module by module. Only the tile count is unknown.
Attention is a scaled query, MatMul, Softmax, MatMul: the form that TensorRT fuses. Each value has
the type in which a strongly typed network is to compute it: float32 for normalising the tiles and
for RMSNorm, the engine's type for the rest.

PyTorch's own exporter could replace this module. It would need two more packages and half a minute,
and it transposes the keys by shapes that the graph computes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from onnx import helper
from torch import nn

from protos.checkpoint.tile import SHUFFLE_FACTOR
from vision_service.checkpoint import VisionConfig
from vision_service.engines.tensorrt.onnx_graph import ELEMENT_TYPES, OnnxGraph
from vision_service.engines.tensorrt.record import INPUT, OUTPUT
from vision_service.engines.torch.intern_vit import (
    MLP,
    SHUFFLE_ORDERS,
    Attention,
    Embeddings,
    Layer,
    VisionModel,
)

TILE_COUNT = "tile_count"

OnLayer = Callable[[int, int], None]


def write_graph(
    model: VisionModel, config: VisionConfig, dtype: torch.dtype, file: Path, on_layer: OnLayer
) -> None:
    """Writes the graph to the file and its weights to one beside it (see OnnxGraph).

    The graph takes `tiles` [tile_count, 3, tile_size, tile_size] uint8, not yet normalised, and
    returns `embeddings` [tile_count, tokens_per_tile, output_size] of `dtype`.

    Args:
        model: on the CPU, with weights of any type.
        config: what the model was made from.
        dtype: element type of the weights and the arithmetic.
        file: where to write; what is there is replaced.
        on_layer: is told how many layers are written, of how many.
    """
    with OnnxGraph(file) as graph:
        VitGraph(graph, model, config, dtype).write(on_layer)
        edge = config.tile_size
        row_shape = (config.tokens_per_tile, config.output_size)
        graph.save(
            helper.make_tensor_value_info(
                INPUT, ELEMENT_TYPES[torch.uint8], [TILE_COUNT, 3, edge, edge]
            ),
            helper.make_tensor_value_info(OUTPUT, ELEMENT_TYPES[dtype], [TILE_COUNT, *row_shape]),
        )


class VitGraph:
    """Adds a VisionModel to a graph; in its reshapes a 0 keeps the input's dimension."""

    def __init__(
        self, graph: OnnxGraph, model: VisionModel, config: VisionConfig, dtype: torch.dtype
    ) -> None:
        self._graph = graph
        self._add = graph.add
        self._model = model
        self._config = config
        self._dtype = dtype
        self._names: dict[torch.Tensor, str] = {
            parameter: name for name, parameter in model.named_parameters()
        }

    def write(self, on_layer: OnLayer) -> None:
        """Adds all nodes, from the graph's input on; the last gives the embeddings."""
        encoder = self._model.vision_model.encoder
        hidden = self._embed(self._normalise(INPUT), self._model.vision_model.embeddings)
        for index, layer in enumerate(encoder.layers[: encoder.used_layer_count]):
            assert isinstance(layer, Layer)
            hidden = self._layer(hidden, layer)
            on_layer(index + 1, encoder.used_layer_count)
        self._project(self._pixel_shuffle(hidden))

    def _normalise(self, tiles: str) -> str:
        """Does what the torch engine's `normalise` does, in the same order."""
        pixels = self._cast(tiles, torch.float32)
        values = self._add("Div", pixels, self._channels("range", (255.0,)))
        centred = self._add("Sub", values, self._channels("mean", self._config.mean))
        return self._add("Div", centred, self._channels("std", self._config.std))

    def _embed(self, values: str, module: Embeddings) -> str:
        """Cuts the patches out and multiplies: opset 20 has no convolution of bfloat16."""
        edge, size = self._config.patches_per_edge, self._config.patch_size
        squares = self._reshape(self._cast(values, self._dtype), 0, 3, edge, size, edge, size)
        # [n, 3, row, y, column, x] -> [n, row, column, 3, y, x] -> [n, patches, 3 x size x size]
        ordered = self._transpose(squares, 0, 2, 4, 1, 3, 5)
        patches = self._reshape(ordered, 0, edge * edge, 3 * size * size)
        embedded = self._linear(patches, module.patch_embedding)
        tokens = self._add("Concat", self._class_tokens(module), embedded, axis=1)
        return self._add("Add", tokens, self._parameter(module.position_embedding))

    def _class_tokens(self, module: Embeddings) -> str:
        tile_count = self._add("Shape", INPUT, start=0, end=1)
        row_shape = self._graph.integers(1, self._config.hidden_size)
        shape = self._add("Concat", tile_count, row_shape, axis=0)
        return self._add("Expand", self._parameter(module.class_embedding), shape)

    def _layer(self, hidden: str, layer: Layer) -> str:
        attended = self._attention(self._norm(hidden, layer.norm1), layer.attn)
        hidden = self._add_scaled(hidden, attended, layer.ls1)
        transformed = self._mlp(self._norm(hidden, layer.norm2), layer.mlp)
        return self._add_scaled(hidden, transformed, layer.ls2)

    def _add_scaled(self, hidden: str, branch: str, scale: torch.Tensor) -> str:
        return self._add("Add", hidden, self._add("Mul", branch, self._parameter(scale)))

    def _attention(self, hidden: str, module: Attention) -> str:
        width = self._config.hidden_size
        joint = self._linear(hidden, module.qkv)
        query, key, value = (
            self._slice(joint, part * width, (part + 1) * width, axis=2) for part in range(3)
        )
        scale = torch.tensor((width // module.head_count) ** -0.5, dtype=self._dtype)
        query = self._norm(query, module.q_norm)
        query = self._add("Mul", query, self._graph.weight("query_scale", scale))
        queries = self._heads(query)  # [n, heads, tokens, size]
        keys = self._transpose(self._heads(self._norm(key, module.k_norm)), 0, 1, 3, 2)
        shares = self._add("Softmax", self._add("MatMul", queries, keys), axis=-1)
        attended = self._add("MatMul", shares, self._heads(value))
        tokens = self._reshape(self._transpose(attended, 0, 2, 1, 3), 0, 0, width)
        return self._linear(tokens, module.proj)

    def _heads(self, states: str) -> str:
        # [n, tokens, C] -> [n, heads, tokens, C / heads]
        count = self._config.head_count
        parts = self._reshape(states, 0, 0, count, self._config.hidden_size // count)
        return self._transpose(parts, 0, 2, 1, 3)

    def _mlp(self, hidden: str, module: MLP) -> str:
        return self._linear(self._add("Gelu", self._linear(hidden, module.fc1)), module.fc2)

    def _pixel_shuffle(self, hidden: str) -> str:
        token_count = 1 + self._config.patches_per_edge**2
        patches = self._slice(hidden, 1, token_count, axis=1)  # without the class token
        width, edge = self._config.hidden_size, self._config.patches_per_edge // SHUFFLE_FACTOR
        squares = self._reshape(patches, 0, edge, SHUFFLE_FACTOR, edge, SHUFFLE_FACTOR, width)
        tokens = self._transpose(squares, *SHUFFLE_ORDERS[self._config.ps_version])
        return self._reshape(tokens, 0, edge * edge, width * SHUFFLE_FACTOR**2)

    def _project(self, tokens: str) -> str:
        norm, first, _, second = self._model.mlp1
        hidden = self._add("Gelu", self._linear(self._norm(tokens, norm), first))
        return self._linear(hidden, second)

    def _linear(self, states: str, module: nn.Module) -> str:
        """Multiplies and adds the bias; a convolution takes its patches as rows."""
        assert isinstance(module, nn.Linear | nn.Conv2d)
        matrix = module.weight.detach().flatten(1).t().to(self._dtype)
        weight = self._graph.weight(self._names[module.weight], matrix)
        product = self._add("MatMul", states, weight)
        if module.bias is None:
            return product
        return self._add("Add", product, self._parameter(module.bias))

    def _norm(self, states: str, module: nn.Module) -> str:
        if isinstance(module, nn.LayerNorm):
            weights = self._parameter(module.weight), self._parameter(module.bias)
            return self._add("LayerNormalization", states, *weights, epsilon=module.eps)
        if isinstance(module, nn.RMSNorm):
            return self._rms_norm(states, module)
        return states

    def _rms_norm(self, states: str, module: nn.RMSNorm) -> str:
        """In float32, as PyTorch; RMSNormalization is an operator from opset 23 on."""
        values = self._cast(states, torch.float32)
        squares = self._add("Mul", values, values)
        mean = self._add("ReduceMean", squares, self._graph.integers(-1))
        assert module.eps is not None
        eps = self._graph.weight("norm_eps", torch.tensor(module.eps))
        root = self._add("Sqrt", self._add("Add", mean, eps))
        scaled = self._cast(self._add("Div", values, root), self._dtype)
        return self._add("Mul", scaled, self._parameter(module.weight))

    def _parameter(self, parameter: torch.Tensor) -> str:
        return self._graph.weight(self._names[parameter], parameter.detach().to(self._dtype))

    def _channels(self, name: str, values: tuple[float, ...]) -> str:
        return self._graph.weight(name, torch.tensor(values).view(-1, 1, 1))

    def _slice(self, states: str, start: int, end: int, axis: int) -> str:
        return self._add("Slice", states, *map(self._graph.integers, (start, end, axis)))

    def _reshape(self, states: str, *shape: int) -> str:
        return self._add("Reshape", states, self._graph.integers(*shape))

    def _transpose(self, states: str, *order: int) -> str:
        return self._add("Transpose", states, perm=order)

    def _cast(self, states: str, dtype: torch.dtype) -> str:
        return self._add("Cast", states, to=ELEMENT_TYPES[dtype])
