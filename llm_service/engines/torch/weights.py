"""From a checkpoint's files to a decoder: tensor by tensor, none missing, none left over."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open

from llm_service.checkpoint import LLMConfig, require_tensors
from llm_service.decoders.family import GROUPED, ROOT, head_rows
from llm_service.engines.torch.decoder import Attention, Decoder, Layer
from llm_service.engines.torch.kernels.base import Kernels
from llm_service.engines.torch.kernels.create import kernels_for
from protos.checkpoint.folder import checked_folder
from protos.checkpoint.section import CheckpointError
from protos.checkpoint.tensor_heads import TensorSummary, require_shapes

CONCURRENT_FILE_COUNT = 8


@dataclass(frozen=True)
class Destination:
    """Where one tensor of the checkpoint goes.

    Attributes:
        views: parts of a parameter, which take the tensor's rows one after the other.
    """

    views: tuple[torch.Tensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that the tensor has in the checkpoint."""
        return (sum(map(len, self.views)), *self.views[0].shape[1:])

    def fill(self, tensor: torch.Tensor) -> None:
        """Copies a tensor of that shape."""
        row_counts = [len(view) for view in self.views]
        for view, rows in zip(self.views, torch.split(tensor, row_counts), strict=True):
            view.copy_(rows)


def load_decoder(
    checkpoint: Path, config: LLMConfig, device: torch.device, dtype: torch.dtype
) -> Decoder:
    """Builds the decoder that the config describes and fills it, several files at a time.

    A tensor goes from its mapped file straight to its place: nothing is held twice.

    Raises:
        CheckpointError: a tensor of the language model is missing, unknown, of another shape or
            not of a float type, or a file is damaged.
    """
    stored = checked_folder(checkpoint, (ROOT,))
    decoder, _ = matching_decoder(checkpoint, config, kernels_for(device, config), stored)
    decoder.to(dtype).to_empty(device=device)
    places = destinations(decoder)
    files = sorted(set(stored.values()))
    with ThreadPoolExecutor(CONCURRENT_FILE_COUNT) as pool:
        filling = [pool.submit(_fill_from, file, places) for file in files]
    for filled in filling:
        filled.result()
    return decoder


def matching_decoder(
    checkpoint: Path, config: LLMConfig, kernels: Kernels, files: Mapping[str, Path]
) -> tuple[Decoder, TensorSummary]:
    """Returns the empty decoder that the config describes, and what its tensors are.

    Args:
        checkpoint: the folder.
        config: of it.
        kernels: what computes.
        files: the file of each of the checkpoint's tensors, which must be those of the decoder.

    Raises:
        CheckpointError: a tensor is missing or left over, of another shape or not of a float type.
    """
    _check_layer_count(checkpoint, config, files.keys())
    decoder = empty_decoder(config, kernels)
    shapes = {name: place.shape for name, place in destinations(decoder).items()}
    require_tensors(checkpoint, files.keys(), shapes.keys())
    return decoder, require_shapes(files, shapes)


def empty_decoder(config: LLMConfig, kernels: Kernels) -> Decoder:
    """Returns the decoder that the config describes on the meta device: shapes without memory."""
    with torch.device("meta"):
        decoder = Decoder(config, kernels)
    return decoder.requires_grad_(False)


def destinations(decoder: Decoder) -> dict[str, Destination]:
    """Returns where each tensor of an original checkpoint goes, by its name there."""
    config, family = decoder.config, decoder.config.family
    named = {
        f"{family.embedding}.weight": Destination((decoder.embedding.weight,)),
        f"{family.norm}.weight": Destination((decoder.norm.weight,)),
        f"{family.head}.weight": Destination((decoder.head.weight[: config.vocabulary_size],)),
    }
    for index, layer in enumerate(decoder.layers):
        for name, destination in _layer_destinations(cast(Layer, layer), config):
            named[f"{family.layers}.{index}.{name}"] = destination
    return {ROOT + name: destination for name, destination in named.items()}


def _layer_destinations(layer: Layer, config: LLMConfig) -> Iterator[tuple[str, Destination]]:
    family = config.family
    gate, up = layer.feed_forward.gate_up.weight.chunk(2)
    for name, parameter in (
        (family.attention_norm, layer.attention_norm.weight),
        (family.attention_output, layer.attention.output.weight),
        (family.feed_forward_norm, layer.feed_forward_norm.weight),
        (family.gate, gate),
        (family.up, up),
        (family.down, layer.feed_forward.down.weight),
    ):
        yield f"{name}.weight", Destination((parameter,))
    for part, name in family.head_norms.items():
        yield f"{name}.weight", Destination((layer.attention.get_parameter(f"{part}_norm"),))
    yield from _qkv_destinations(layer.attention, config)


def _qkv_destinations(attention: Attention, config: LLMConfig) -> Iterator[tuple[str, Destination]]:
    head_counts = config.head_count, config.kv_head_count
    for name, order in config.family.qkv.items():
        heads, own_order = order.heads(*head_counts), GROUPED.heads(*head_counts)
        ranges = head_rows(heads, own_order, config.head_dim)
        for kind, parameter in attention.qkv.named_parameters():
            views = tuple(parameter[rows.start : rows.stop] for rows in ranges)
            yield f"{name}.{kind}", Destination(views)


def _check_layer_count(checkpoint: Path, config: LLMConfig, names: Collection[str]) -> None:
    """Refuses another number of layers before a decoder of the config's is made, however large."""
    start = f"{ROOT}{config.family.layers}."
    layers = {name[len(start) :].split(".")[0] for name in names if name.startswith(start)}
    if len(layers) != config.layer_count:
        raise CheckpointError(
            f"{checkpoint}: there are tensors of {len(layers)} layers of the language model, but"
            f" llm_config.num_hidden_layers is {config.layer_count}"
        )


def _fill_from(file: Path, places: Mapping[str, Destination]) -> None:
    """Copies the file's tensors of the language model to their places."""
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict: it has no iterator
                if name in places:
                    places[name].fill(tensors.get_tensor(name))
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
