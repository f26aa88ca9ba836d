"""The torch engine: InternViT in PyTorch, on the CPU or on one CUDA device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vision_service.checkpoint import CheckpointError, TensorDigest, VisionConfig, vision_tensors
from vision_service.engines import EngineStartError
from vision_service.engines.intern_vit import VisionModel

if TYPE_CHECKING:
    from vision_service.settings import Settings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchEngine:
    """Runs a VisionModel; normalising the tiles is its first step (see VisionEngine)."""

    def __init__(self, model: VisionModel, config: VisionConfig, weights_sha256: bytes) -> None:
        parameter = next(model.parameters())
        self._model = model.eval()
        self._device = parameter.device
        self._dtype = parameter.dtype
        self._weights_sha256 = weights_sha256
        self._config = config

    @classmethod
    def load(cls, settings: Settings, config: VisionConfig) -> TorchEngine:
        """Loads the checkpoint and runs a batch of black tiles: one, on CUDA the largest.

        Raises:
            CheckpointError: the tensors are not those that the config describes.
            EngineStartError: there is no CUDA device, or its memory is too small.
        """
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        device = _device(settings.device)
        dtype = _dtype(settings.dtype, device)
        # The largest batch shows now, and not under load, whether the device's memory is enough.
        tile_count = settings.max_batch_tile_count if device.type == "cuda" else 1
        try:
            model, weights_sha256 = load_model(settings.checkpoint, config, device, dtype)
            engine = cls(model, config, weights_sha256)
            engine.encode(torch.zeros(tile_count, 3, *[config.tile_size] * 2, dtype=torch.uint8))
        except torch.OutOfMemoryError as error:
            raise EngineStartError(
                f"the model and a batch of {tile_count} tiles (max_batch_tile_count) do not fit "
                f"into the memory of {device}"
            ) from error
        return engine

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the weights and the embeddings."""
        return self._dtype

    @property
    def weights_sha256(self) -> bytes:
        """Digest of the tensors as the checkpoint stores them."""
        return self._weights_sha256

    @torch.inference_mode()
    def encode(self, tiles: torch.Tensor) -> torch.Tensor:
        """Returns [n, tokens_per_tile, hidden] for [n, 3, tile_size, tile_size] uint8."""
        values = normalise(tiles.to(self._device), self._config.mean, self._config.std)
        embeddings: torch.Tensor = self._model(values.to(self._dtype))
        return embeddings.cpu()


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
    path: Path, config: VisionConfig, device: torch.device, dtype: torch.dtype
) -> tuple[VisionModel, bytes]:
    """Returns the model with the checkpoint's weights, and their digest.

    The model is built without memory and takes the tensors as they are read, so that there is
    never a second copy of the weights.

    Raises:
        CheckpointError: a tensor is missing, unexpected, or of another shape.
    """
    digest = TensorDigest()
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in vision_tensors(path):
        digest.add(name, tensor)
        weights[name] = tensor.to(device, dtype)
    with torch.device("meta"):
        model = VisionModel(config)
    try:
        model.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {' '.join(str(error).split())}") from error
    return model, digest.digest()


def _device(name: str) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise EngineStartError("device is cuda, but PyTorch finds no CUDA device")
    return torch.device("cuda" if has_cuda and name != "cpu" else "cpu")


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name != "auto":
        return DTYPES[name]
    return torch.bfloat16 if device.type == "cuda" else torch.float32
