"""From a checkpoint's files to a decoder: tensor by tensor, none missing, none left over."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from llm_service.checkpoint import LLMConfig, require_tensors
from llm_service.decoders.family import GROUPED, ROOT, head_rows
from llm_service.engines.torch.decoder import Attention, Decoder, Layer, Projection
from llm_service.engines.torch.kernels.base import Kernels
from llm_service.engines.torch.kernels.create import kernels_for
from llm_service.engines.torch.kernels.fp8 import FP8, quantised
from llm_service.settings import Quantization
from protos.checkpoint.folder import checked_folder
from protos.checkpoint.section import CheckpointError
from protos.checkpoint.tensor_heads import TensorSummary, element_types, require_shapes

CONCURRENT_FILE_COUNT = 8
# Numbers that are quantised at a time: on a CPU they stay in its cache, a GPU takes larger steps.
CPU_WIDENED_COUNT = 1024 * 1024
CUDA_WIDENED_COUNT = 4 * CPU_WIDENED_COUNT
QUANTISED = {"int8": torch.int8, "fp8": FP8}


@dataclass(frozen=True)
class StoredTypes:
    """The types in which weights are kept.

    Attributes:
        matrices: of all that is multiplied in the layers.
        embedding: of the embedding, which is never quantised: a token reads one row of it.
        head: of the head, whose rounding no later layer evens out: float8 leaves it alone.
    """

    matrices: torch.dtype
    embedding: torch.dtype
    head: torch.dtype


@dataclass(frozen=True)
class Destination:
    """Where one tensor of the checkpoint goes.

    Attributes:
        views: parts of a parameter, which take the tensor's rows one after the other.
        scales: [rows, 1], of each view that is quantised; else none.
        whole: the parameter, where the tensor is all of it.
    """

    views: tuple[torch.Tensor, ...]
    scales: tuple[torch.Tensor, ...] = ()
    whole: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that the tensor has in the checkpoint."""
        return (sum(map(len, self.views)), *self.views[0].shape[1:])

    @property
    def parts(self) -> tuple[torch.Tensor, ...]:
        """Where the tensor's numbers are finite, these are, and only there."""
        return self.scales or self.views

    def fill(self, tensor: torch.Tensor) -> None:
        """Takes a tensor of that shape: as it is where it can be mapped, else as a copy."""
        if self.whole is not None and self.whole.is_cpu and self.whole.dtype == tensor.dtype:
            self.whole.data = tensor
            return
        row_counts = [len(view) for view in self.views]
        parts = torch.split(tensor, row_counts)
        for view, rows, scale in zip_longest(self.views, parts, self.scales):
            if scale is None:
                view.copy_(rows)
            else:
                _quantise(rows, view, scale)


def stored_types(
    checkpoint: Path, device: torch.device, dtype: torch.dtype, quantization: Quantization
) -> StoredTypes:
    """Returns what weights are kept as, which the checkpoint decides too.

    On a CPU bfloat16 stays bfloat16 also where float32 computes, since each of its numbers is one
    of float32: half of the memory is read for the same result.
    """
    types = element_types(checked_folder(checkpoint, (ROOT,)))
    stays = device.type == "cpu" and dtype == torch.float32 and types == ("BF16",)
    kept = torch.bfloat16 if stays else dtype
    matrices = QUANTISED.get(quantization, kept)
    return StoredTypes(matrices, kept, kept if quantization == "fp8" else matrices)


def load_decoder(
    checkpoint: Path,
    config: LLMConfig,
    device: torch.device,
    dtype: torch.dtype,
    stored: StoredTypes | None = None,
) -> Decoder:
    """Builds the decoder that the config describes and fills it, several files at a time.

    A tensor goes from its mapped file straight to its place: nothing is held twice. On a CPU one
    that is a whole parameter stays where it is.

    Args:
        checkpoint: the folder.
        config: of it.
        device: where it goes.
        dtype: the type of the activations.
        stored: the types of the weights; by default the same.

    Raises:
        CheckpointError: a tensor of the language model is missing, unknown, of another shape or
            not of a float type, or a file is damaged.
    """
    files_of = checked_folder(checkpoint, (ROOT,))
    decoder, _ = matching_decoder(checkpoint, config, kernels_for(device, config), files_of)
    decoder.to(dtype)
    if stored is not None:
        decoder.store_as(stored.matrices, stored.embedding, stored.head)
    _allocate(decoder, device)
    places = destinations(decoder)
    files = sorted(set(files_of.values()))
    with ThreadPoolExecutor(CONCURRENT_FILE_COUNT) as pool:
        filling = [pool.submit(_fill_from, file, places) for file in files]
    for filled in filling:
        filled.result()
    if device.type == "cuda":  # the threads have launched what others will read, and left room
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    return decoder


def _allocate(decoder: Decoder, device: torch.device) -> None:
    """Gives an empty decoder its memory; PyTorch's own way imports a second's worth of modules."""
    for module in decoder.modules():
        for name, parameter in module.named_parameters(recurse=False):
            memory = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            setattr(module, name, nn.Parameter(memory, requires_grad=False))


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
        f"{family.embedding}.weight": _whole(decoder.embedding.weight),
        f"{family.norm}.weight": _whole(decoder.norm.weight),
        f"{family.head}.weight": _rows(decoder.head, range(config.vocabulary_size)),
    }
    for index, layer in enumerate(decoder.layers):
        for name, destination in _layer_destinations(cast(Layer, layer), config):
            named[f"{family.layers}.{index}.{name}"] = destination
    return {ROOT + name: destination for name, destination in named.items()}


def _layer_destinations(layer: Layer, config: LLMConfig) -> Iterator[tuple[str, Destination]]:
    family = config.family
    width = config.intermediate_size
    gate_up = layer.feed_forward.gate_up
    for name, destination in (
        (family.attention_norm, _whole(layer.attention_norm.weight)),
        (family.attention_output, _rows(layer.attention.output)),
        (family.feed_forward_norm, _whole(layer.feed_forward_norm.weight)),
        (family.gate, _rows(gate_up, range(width))),
        (family.up, _rows(gate_up, range(width, 2 * width))),
        (family.down, _rows(layer.feed_forward.down)),
    ):
        yield f"{name}.weight", destination
    for part, name in family.head_norms.items():
        yield f"{name}.weight", _whole(layer.attention.get_parameter(f"{part}_norm"))
    yield from _qkv_destinations(layer.attention, config)


def _qkv_destinations(attention: Attention, config: LLMConfig) -> Iterator[tuple[str, Destination]]:
    head_counts = config.head_count, config.kv_head_count
    for name, order in config.family.qkv.items():
        heads, own_order = order.heads(*head_counts), GROUPED.heads(*head_counts)
        ranges = head_rows(heads, own_order, config.head_dim)
        yield f"{name}.weight", _rows(attention.qkv, *ranges)
        if (bias := attention.qkv.bias) is not None:
            views = tuple(bias[rows.start : rows.stop] for rows in ranges)
            yield f"{name}.bias", Destination(views)


def _whole(parameter: torch.Tensor) -> Destination:
    return Destination((parameter,), whole=parameter)


def _rows(projection: Projection, *ranges: range) -> Destination:
    """Returns those rows of a weight, or all."""
    weight, scale = projection.weight, projection.scale
    every = range(len(weight))
    ranges = ranges or (every,)
    return Destination(
        views=tuple(weight[rows.start : rows.stop] for rows in ranges),
        scales=() if scale is None else tuple(scale[rows.start : rows.stop] for rows in ranges),
        whole=weight if ranges == (every,) else None,
    )


def _quantise(rows: torch.Tensor, view: torch.Tensor, scale: torch.Tensor) -> None:
    """Writes rows in the view's type, and what to multiply each with.

    A few rows at a time: a head's numbers in float32 take gigabytes. The device computes them.
    """
    count = max(1, (CUDA_WIDENED_COUNT if view.is_cuda else CPU_WIDENED_COUNT) // rows.shape[1])
    for begin in range(0, len(rows), count):
        some = slice(begin, begin + count)
        view[some], scale[some] = quantised(rows[some].to(view.device), view.dtype)


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
