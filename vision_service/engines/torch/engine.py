"""The torch engine: InternViT in PyTorch, here on the CPU; on CUDA it is `cuda_engine`'s."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from protos.checkpoint.section import CheckpointError
from protos.checkpoint.tensor_names import require_names
from vision_service.checkpoint import (
    TensorDigest,
    VisionConfig,
    vision_tensor_files,
    vision_tensors,
)
from vision_service.engines.base import DTYPES, EngineStartError, VisionEngine
from vision_service.engines.torch.intern_vit import VisionModel
from vision_service.settings import Settings

LAYER_PREFIX = "vision_model.encoder.layers."


def start_engine(settings: Settings, config: VisionConfig) -> VisionEngine:
    """Loads the checkpoint and encodes black tiles: one, on CUDA batches of all sizes.

    Raises:
        CheckpointError: the tensors are not those that the config describes.
        EngineStartError: there is no CUDA device, or its memory is too small.
    """
    torch.set_num_threads(settings.torch.thread_count)
    device = _device(settings.torch.device)
    dtype = _dtype(settings.torch.dtype, device)
    if device.type == "cuda":
        return _start_cuda_engine(settings, config, device, dtype)
    model, weights_sha256 = load_model(settings.checkpoint, config, device, dtype)
    engine = TorchEngine(model, config, weights_sha256)
    engine.encode(torch.zeros(1, 3, *[config.tile_size] * 2, dtype=torch.uint8))
    return engine


def _start_cuda_engine(
    settings: Settings, config: VisionConfig, device: torch.device, dtype: torch.dtype
) -> VisionEngine:
    from vision_service.engines.torch.cuda_engine import CudaEngine
    from vision_service.engines.torch.fused_vit import FusedVisionModel
    from vision_service.engines.torch.triton_programs import OPERATIONS

    # Mapped from the file: what moves to the device is folded and cast there.
    model, weights_sha256 = load_model(settings.checkpoint, config, torch.device("cpu"), None)
    try:
        fused = FusedVisionModel(model, config, OPERATIONS, device, dtype)
        return CudaEngine(
            fused,
            config,
            weights_sha256,
            dtype=dtype,
            max_batch_tile_count=settings.max_batch_tile_count,
        )
    except torch.OutOfMemoryError as error:
        raise EngineStartError(
            f"the model and a batch of {settings.max_batch_tile_count} tiles "
            f"(max_batch_tile_count) do not fit into the memory of {device}"
        ) from error


class TorchEngine:
    """A VisionEngine on the CPU; its first step is to normalise the tiles.

    Attributes:
        dtype: element type of the weights and the embeddings.
        weights_sha256: digest of the tensors as the checkpoint stores them.
    """

    def __init__(self, model: VisionModel, config: VisionConfig, weights_sha256: bytes) -> None:
        self._model = model.eval()
        self.dtype = next(model.parameters()).dtype
        self.weights_sha256 = weights_sha256
        self._config = config

    @torch.inference_mode()
    def encode(self, tiles: torch.Tensor) -> torch.Tensor:
        values = normalise(tiles, self._config.mean, self._config.std)
        embeddings: torch.Tensor = self._model(values.to(self.dtype))
        return embeddings

    def submit(self, images: Sequence[torch.Tensor]) -> FinishedBatch:
        embeddings = self.encode(torch.cat(list(images)))
        parts = torch.split(embeddings, [len(tiles) for tiles in images])
        return FinishedBatch([part.clone() for part in parts] if len(parts) > 1 else [embeddings])


@dataclass(frozen=True)
class FinishedBatch:
    """The EncodingBatch of an engine that computes on the caller's thread."""

    embeddings: list[torch.Tensor]
    padding_tile_count: int = 0

    def is_ready(self) -> bool:
        return True

    def wait(self) -> list[torch.Tensor]:
        return self.embeddings


def normalise(
    tiles: torch.Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> torch.Tensor:
    """Returns float32 pixel values: (tiles / 255 - mean) / std, by channel.

    In float32 and in this order they have the bits of the reference's ToTensor and Normalize.

    Args:
        tiles: [n, 3, tile_size, tile_size] uint8 RGB.
        mean: of red, green and blue, for values from 0 to 1.
        std: likewise.
    """
    mean_, std_ = (torch.tensor(v, device=tiles.device).view(3, 1, 1) for v in (mean, std))
    values = torch.empty(tiles.shape, device=tiles.device)
    # Tile by tile: one stays in the CPU's cache through all four steps.
    for tile, value in zip(tiles, values, strict=True):
        value.copy_(tile).div_(255).sub_(mean_).div_(std_)
    return values


def load_model(
    path: Path, config: VisionConfig, device: torch.device, dtype: torch.dtype | None
) -> tuple[VisionModel, bytes]:
    """Returns the model with the checkpoint's weights, and their digest; no dtype: as stored.

    The model is built without memory and takes the tensors as they are read, so that there is
    never a second copy of the weights.

    Raises:
        CheckpointError: a tensor is missing, unexpected, or of another shape.
    """
    files = vision_tensor_files(path)
    _check_layer_count(path, config, files)
    with torch.device("meta"):
        model = VisionModel(config)
    described = model.state_dict()
    require_names(path, files.keys(), described.keys())
    digest = TensorDigest()
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in vision_tensors(files):
        _check_tensor(files[name], name, tensor, described[name])
        digest.add(name, tensor)
        weights[name] = tensor.to(device, dtype or tensor.dtype)
    model.load_state_dict(weights, strict=True, assign=True)
    model.vision_model.embeddings.fit_positions()
    return model, digest.digest()


def _check_tensor(file: Path, name: str, stored: torch.Tensor, described: torch.Tensor) -> None:
    if stored.shape != described.shape or not stored.is_floating_point():
        raise CheckpointError(
            f"{file}: {name} is {stored.dtype} {list(stored.shape)};"
            f" config.json asks for floats {list(described.shape)}"
        )


def _check_layer_count(path: Path, config: VisionConfig, names: Iterable[str]) -> None:
    """Refuses another number of layers before a model of the config's is made, however large."""
    layers = {name.split(".")[3] for name in names if name.startswith(LAYER_PREFIX)}
    if len(layers) != config.layer_count:
        raise CheckpointError(
            f"{path}: there are tensors of {len(layers)} layers, "
            f"but vision_config.num_hidden_layers is {config.layer_count}"
        )


def _device(name: str) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise EngineStartError("device is cuda, but PyTorch finds no CUDA device")
    return torch.device("cuda" if has_cuda and name != "cpu" else "cpu")


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name != "auto":
        return DTYPES[name]
    # With AMX a tile takes a third to a quarter of its time in float32. PyTorch 2.9, the oldest
    # that is supported, has no public name for the question.
    has_fast_bfloat16 = device.type == "cuda" or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_fast_bfloat16 else torch.float32
