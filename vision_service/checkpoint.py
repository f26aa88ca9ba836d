"""The checkpoint: what its config.json says about the vision side, and the tensors of that side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import structlog
import torch
from safetensors import SafetensorError, safe_open

from protos.checkpoint.folder import checked_config, checked_folder
from protos.checkpoint.section import CheckpointError, Section
from protos.checkpoint.tile import DEFAULT_IMAGE_SIZE, SHUFFLE_FACTOR, Tile
from vision_service.settings import LARGEST_TILE_CAP
from vision_service.tiling import TilePolicy

TENSOR_PREFIXES = ("vision_model.", "mlp1.")
# ImageNet's: constants of the reference's transform, whatever preprocessor_config.json says.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# What the classes that write config.json have without the key, and the only values that the code
# implements.
SUPPORTED_MODEL = {
    "downsample_ratio": 1 / SHUFFLE_FACTOR,
    "pad2square": False,
}
SUPPORTED_TOWER = {"num_channels": 3, "hidden_act": "gelu"}

logger = structlog.get_logger()

NormType = Literal["layer_norm", "rms_norm"]
PixelShuffleVersion = Literal["v1", "v2"]


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
        image_size: edge of the tile that the position embedding is stored for.
        norm_type: LayerNorm (300M tower) or RMSNorm (6B tower).
        norm_eps: epsilon of these norms.
        qkv_bias: whether the joint q, k, v projection has a bias.
        qk_normalization: whether q and k pass an RMSNorm over the whole width.
        output_size: the LLM's hidden size, i.e. the length of an embedding row.
        max_dynamic_patch: the tile cap of the checkpoint, without the thumbnail.
        min_dynamic_patch: fewest tiles of a grid, likewise.
        dynamic_image_size: whether an image may be cut at all.
        use_thumbnail: whether a thumbnail follows several tiles.
        ps_version: of the pixel shuffle: v1 orders a tile's tokens by columns, v2 by rows.
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
    image_size: int
    norm_type: NormType
    norm_eps: float
    qkv_bias: bool
    qk_normalization: bool
    output_size: int
    max_dynamic_patch: int
    min_dynamic_patch: int = 1
    dynamic_image_size: bool = True
    use_thumbnail: bool = True
    ps_version: PixelShuffleVersion = "v2"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def patches_per_edge(self) -> int:
        """Patches along the edge of a tile (32 for 448 and 14)."""
        return Tile(self.tile_size, self.patch_size).patches_per_edge

    @property
    def stored_patches_per_edge(self) -> int:
        """Patches along the edge of the tile that the position embedding is stored for."""
        return self.image_size // self.patch_size

    @property
    def tokens_per_tile(self) -> int:
        """Embedding rows of a tile (256 for 448 and 14)."""
        return Tile(self.tile_size, self.patch_size).token_count

    @property
    def tile_policy(self) -> TilePolicy:
        """How images are cut."""
        return TilePolicy(self.dynamic_image_size, self.min_dynamic_patch, self.use_thumbnail)

    @classmethod
    def from_checkpoint(cls, path: Path) -> VisionConfig:
        """Reads config.json; a missing key has the value that the class which wrote it would have.

        Warns of a preprocessor_config.json with another mean or std than the reference's constants,
        which are used: the reference never reads that file.

        Raises:
            CheckpointError: a file or a key is missing, or a value is one that is not supported.
        """
        model = checked_config(path)
        model.require_values(SUPPORTED_MODEL)
        tower = model.section("vision_config")
        tower.require_values(SUPPORTED_TOWER)
        layer_count = tower.size("num_hidden_layers", default=48)
        head_count = tower.size("num_attention_heads", default=25)
        tile = Tile.of_model(model)
        _warn_of_other_constants(path / "preprocessor_config.json")
        return cls(
            hidden_size=tower.multiple("hidden_size", head_count, default=3200),
            intermediate_size=tower.size("intermediate_size", default=12800),
            layer_count=layer_count,
            used_layer_count=_used_layer_count(model, layer_count),
            head_count=head_count,
            patch_size=tile.patch_size,
            tile_size=tile.size,
            image_size=tower.multiple("image_size", tile.patch_size, default=DEFAULT_IMAGE_SIZE),
            norm_type=cast(
                NormType, tower.one_of("norm_type", ("layer_norm", "rms_norm"), default="rms_norm")
            ),
            norm_eps=tower.positive("layer_norm_eps", default=1e-6),
            qkv_bias=tower.read("qkv_bias", bool, default=False),
            qk_normalization=tower.read("qk_normalization", bool, default=True),
            output_size=model.section("llm_config").size("hidden_size"),
            max_dynamic_patch=model.size("max_dynamic_patch", LARGEST_TILE_CAP, default=6),
            min_dynamic_patch=model.size("min_dynamic_patch", LARGEST_TILE_CAP, default=1),
            dynamic_image_size=model.read("dynamic_image_size", bool, default=False),
            use_thumbnail=model.read("use_thumbnail", bool, default=False),
            ps_version=_pixel_shuffle_version(model),
        )


def vision_tensor_files(path: Path) -> dict[str, Path]:
    """Returns the file of each tensor `vision_model.*` and `mlp1.*`, by name and in its order.

    Raises:
        CheckpointError: the checkpoint is not one that is served, or has no such tensor.
    """
    return dict(sorted(checked_folder(path, TENSOR_PREFIXES).items()))


def vision_tensors(files: Mapping[str, Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors of `vision_tensor_files`, on the CPU, as they are stored.

    Memory is mapped, not copied, each file's once.

    Raises:
        CheckpointError: a file is damaged.
    """
    opened = {file: _open(file) for file in dict.fromkeys(files.values())}
    for name, file in files.items():
        yield name, _get(opened[file], file, name)


class TensorDigest:
    """SHA-256 over the names, types, shapes and bytes of tensors, in the order they are added."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Adds a CPU tensor."""
        self._hash.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        self._hash.update(tensor.reshape(-1).view(torch.uint8).numpy().data)

    def digest(self) -> bytes:
        return self._hash.digest()


def _used_layer_count(model: Section, layer_count: int) -> int:
    """Counts as the reference does: hidden_states[select_layer], where [0] is before layer 1."""
    select_layer = model.read("select_layer", int, default=-1)
    used = select_layer if select_layer >= 0 else layer_count + 1 + select_layer
    if not 1 <= used <= layer_count:
        raise model.error("select_layer", f"is {select_layer}, but there are {layer_count} layers")
    return used


def _pixel_shuffle_version(model: Section) -> PixelShuffleVersion:
    """A null is refused: to the reference it is v2, and a missing key v1."""
    if "ps_version" in model.values and not model.has("ps_version"):
        raise model.error("ps_version", "is null; supported: v1, v2")
    return cast(PixelShuffleVersion, model.one_of("ps_version", ("v1", "v2"), default="v1"))


def _warn_of_other_constants(file: Path) -> None:
    try:
        section = Section.of_file(file)
    except CheckpointError:  # it is not needed
        return
    used = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}
    found = {key: section.values[key] for key in used if section.has(key)}
    if found != {key: used[key] for key in found}:
        logger.warning("preprocessor_config_ignored", file=str(file), found=found, used=used)


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
