"""From a checkpoint's files to a decoder: tensor by tensor, none missing, none left over."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from llm_service.checkpoint import CheckpointError, LLMConfig, weight_files
from llm_service.engines.torch.kernels import Kernels, kernels_for
from llm_service.engines.torch.models import DECODERS
from llm_service.engines.torch.models.decoder import Decoder, Destination

PREFIX = "language_model."
CONCURRENT_FILE_COUNT = 8


def load_decoder(
    checkpoint: Path, config: LLMConfig, device: torch.device, dtype: torch.dtype
) -> Decoder:
    """Builds the decoder that the config names and fills it, several files at a time.

    A tensor goes from its mapped file straight to its place: nothing is held twice.

    Raises:
        CheckpointError: a tensor of the language model is missing, unknown, of another shape or
            not of a float type, or a file is damaged.
    """
    decoder = empty_decoder(config, kernels_for(device, config)).to(dtype).to_empty(device=device)
    destinations = decoder.destinations()
    with ThreadPoolExecutor(CONCURRENT_FILE_COUNT) as pool:
        filling = [pool.submit(_fill_from, file, destinations) for file in weight_files(checkpoint)]
    for filled in filling:
        filled.result()
    if destinations:
        raise CheckpointError(
            f"the checkpoint lacks {len(destinations)} tensors, among them {min(destinations)}"
        )
    return decoder


def empty_decoder(config: LLMConfig, kernels: Kernels) -> Decoder:
    """Returns the decoder that the config names on the meta device: shapes without memory."""
    with torch.device("meta"):
        decoder = DECODERS[config.architecture](config, kernels)
    return decoder.requires_grad_(False)


def _fill_from(file: Path, destinations: dict[str, Destination]) -> None:
    """Copies the file's tensors of the language model, and takes their destinations out."""
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict: it has no iterator
                if name.startswith(PREFIX):
                    destination = destinations.pop(name, None)
                    if destination is None:
                        raise CheckpointError(f"{file.name} has an unexpected tensor {name}")
                    _copy(name, tensors.get_tensor(name), destination)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error


def _copy(name: str, tensor: torch.Tensor, destination: Destination) -> None:
    if tuple(tensor.shape) != destination.shape or not tensor.is_floating_point():
        raise CheckpointError(
            f"{name} is {tensor.dtype} {list(tensor.shape)}; "
            f"config.json asks for floats {list(destination.shape)}"
        )
    destination.view.copy_(tensor.view(destination.view.shape))
