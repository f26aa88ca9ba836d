"""The checkpoint: what its config.json says about the vision side, and the tensors of that side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open

from protos.checkpoint.folder import checked_config, checked_folder
from protos.checkpoint.section import CheckpointError, Section
from vision_service.settings import LARGEST_TILE_CAP

TENSOR_PREFIXES = ("vision_model.", "mlp1.")
# Edge, in patches, of the square that pixel shuffle folds into one token: 1 / downsample_ratio.
SHUFFLE_FACTOR = 2
# ImageNet's, as in the reference's transform; used when there is no preprocessor_config.json.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# What the released InternVL2.5 checkpoints have, and the only values that the code implements.
SUPPORTED_MODEL = {
    "ps_version": "v2",
    "downsample_ratio": 1 / SHUFFLE_FACTOR,
    "dynamic_image_size": True,
    "use_thumbnail": True,
    "min_dynamic_patch": 1,
}
SUPPORTED_TOWER = {"num_channels": 3, "hidden_act": "gelu"}

NormType = Literal["layer_norm", "rms_norm"]


@dataclass(frozen=True)
class VisionConfig:
    """The vision half of a checkpoint's configuration.

    Attributes:
        hidden_size: width of the ViT.
        intermediate_size: width of its MLP.
        layer_count: layers in the checkpoint.
        used_layer_count: layers that run; what `select_layer` asks for.
        head_count: attention heads.
        patch_size: edge of a patch in pixels.
        tile_size: edge of a tile in pixels.
        norm_type: LayerNorm (300M tower) or RMSNorm (6B tower).
        norm_eps: epsilon of these norms.
        qkv_bias: whether the joint q, k, v projection has a bias.
        qk_normalization: whether q and k pass an RMSNorm over the whole width.
        output_size: the LLM's hidden size, i.e. the length of an embedding row.
        max_dynamic_patch: the tile cap of the checkpoint, without the thumbnail.
        mean: of the red, green and blue channel, for values from 0 to 1.
        std: standard deviation, likewise.
    """

    hidden_size: int
    intermediate_size: int
    layer_count: int
    used_layer_count: int
    head_count: int
    patch_size: int
    tile_size: int
    norm_type: NormType
    norm_eps: float
    qkv_bias: bool
    qk_normalization: bool
    output_size: int
    max_dynamic_patch: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def patches_per_edge(self) -> int:
        """Patches along the edge of a tile (32 for 448 and 14)."""
        return self.tile_size // self.patch_size

    @property
    def tokens_per_tile(self) -> int:
        """Embedding rows of a tile (256 for 448 and 14)."""
        return (self.patches_per_edge // SHUFFLE_FACTOR) ** 2

    @classmethod
    def from_checkpoint(cls, path: Path) -> VisionConfig:
        """Reads config.json and, for mean and std, preprocessor_config.json where there is one.

        Raises:
            CheckpointError: a file or a key is missing, or a value is one that is not supported.
        """
        model = checked_config(path)
        model.require_values(SUPPORTED_MODEL)
        tower = model.section("vision_config")
        tower.require_values({**SUPPORTED_TOWER, "image_size": model.size("force_image_size")})
        layer_count = tower.size("num_hidden_layers")
        mean, std = _mean_and_std(path / "preprocessor_config.json")
        return cls(
            hidden_size=tower.multiple("hidden_size", tower.size("num_attention_heads")),
            intermediate_size=tower.size("intermediate_size"),
            layer_count=layer_count,
            used_layer_count=_used_layer_count(model, layer_count),
            head_count=tower.size("num_attention_heads"),
            patch_size=tower.size("patch_size"),
            tile_size=tower.multiple("image_size", SHUFFLE_FACTOR * tower.size("patch_size")),
            norm_type=cast(NormType, tower.one_of("norm_type", ("layer_norm", "rms_norm"))),
            norm_eps=tower.positive("layer_norm_eps"),
            qkv_bias=tower.read("qkv_bias", bool),
            qk_normalization=tower.read("qk_normalization", bool),
            output_size=model.section("llm_config").size("hidden_size"),
            max_dynamic_patch=model.size("max_dynamic_patch", LARGEST_TILE_CAP),
            mean=mean,
            std=std,
        )


def vision_tensor_files(path: Path) -> dict[str, Path]:
    """Returns the file of each tensor `vision_model.*` and `mlp1.*`, by name and in its order.

    Raises:
        CheckpointError: the checkpoint is not one that is served, or has no such tensor.
    """
    files = checked_folder(path, TENSOR_PREFIXES)
    if not files:
        raise CheckpointError(f"{path}: there are no tensors vision_model.* and mlp1.*")
    return dict(sorted(files.items()))


def vision_tensors(files: Mapping[str, Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors of `vision_tensor_files`, on the CPU, as they are stored.

    Memory is mapped, not copied.

    Raises:
        CheckpointError: a file is damaged.
    """
    for name, file in files.items():
        with _open(file) as tensors:
            yield name, _get(tensors, file, name)


class TensorDigest:
    """SHA-256 over the names, types, shapes and bytes of tensors, in the order they are added."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Adds a CPU tensor."""
        self._hash.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        self._hash.update(tensor.reshape(-1).view(torch.uint8).numpy().data)

    def digest(self) -> bytes:
        """Returns the 32 bytes."""
        return self._hash.digest()


def _used_layer_count(model: Section, layer_count: int) -> int:
    """Counts as the reference does: hidden_states[select_layer], where [0] is before layer 1."""
    select_layer = model.read("select_layer", int)
    used = select_layer if select_layer >= 0 else layer_count + 1 + select_layer
    if not 1 <= used <= layer_count:
        raise model.error("select_layer", f"is {select_layer}, but there are {layer_count} layers")
    return used


def _mean_and_std(path: Path) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    if not path.is_file():
        return IMAGENET_MEAN, IMAGENET_STD
    section = Section.of_file(path)
    mean, std = _triple(section, "image_mean"), _triple(section, "image_std")
    if min(std) <= 0:
        raise section.error("image_std", f"is {list(std)}; each must be more than 0")
    return mean, std


def _triple(section: Section, key: str) -> tuple[float, float, float]:
    values = section.read(key, list)
    numbers = [value for value in values if isinstance(value, int | float)]
    if not len(numbers) == len(values) == 3 or not all(0 <= value <= 1 for value in numbers):
        raise section.error(key, f"is {values!r}, not three numbers from 0 to 1")
    return float(values[0]), float(values[1]), float(values[2])


def _open(file: Path) -> Any:  # safetensors has no type for it
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error


def _get(tensors: Any, file: Path, name: str) -> torch.Tensor:
    try:
        tensor: torch.Tensor = tensors.get_tensor(name)
    except SafetensorError as error:
        raise CheckpointError(f"{file}: cannot read tensor {name}: {error}") from error
    return tensor
