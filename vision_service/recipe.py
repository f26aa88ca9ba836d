"""The recipe: everything but the image file and the tile cap that decides an embedding."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import PIL
import torch

from vision_service.checkpoint import VisionConfig
from vision_service.pictures.transparency import Transparency

# Raised when tiling or the model's arithmetic changes what an embedding holds.
CONTRACT = "internvl.v1/2"
# Pillow's major version stands for its bundled decoders too.
RESIZE = f"pillow-{PIL.__version__.split('.')[0]} bicubic"
# The tile cap is in the embedding's id beside the recipe (protos/identity.py).
NOT_IN_RECIPE = frozenset({"max_dynamic_patch"})
# How images are cut, as every released checkpoint has it.
RELEASED_TILING: dict[str, Any] = {
    "dynamic_image_size": True,
    "min_dynamic_patch": 1,
    "use_thumbnail": True,
}


def recipe_sha256(
    config: VisionConfig,
    weights_sha256: bytes,
    dtype: torch.dtype,
    transparency: Transparency = "white",
) -> bytes:
    """Returns the service's recipe_sha256 (GetModelInfoResponse), 32 bytes.

    Args:
        config: the vision half of the configuration, with the tile size, mean and std.
        weights_sha256: digest of the vision tensors as stored.
        dtype: element type of the engine.
        transparency: what transparent pixels become.
    """
    recipe = {
        "contract": CONTRACT,
        "config": _config(config),
        "weights": weights_sha256.hex(),
        "resize": RESIZE,
        "dtype": str(dtype),
        "transparency": transparency,
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).digest()


def plan_recipe_sha256(config: VisionConfig, weights_sha256: bytes, dtype: torch.dtype) -> bytes:
    """Returns the recipe of a plan, which sees tiles, however they were cut; as `recipe_sha256`."""
    return recipe_sha256(dataclasses.replace(config, **RELEASED_TILING), weights_sha256, dtype)


def _config(config: VisionConfig) -> dict[str, Any]:
    """Returns what of the configuration is in the recipe.

    An option that is as in every released checkpoint is left out: embeddings of those have the ids
    that they had before there was the option.
    """
    values = dataclasses.asdict(config)
    released = {**RELEASED_TILING, "ps_version": "v2", "image_size": config.tile_size}
    as_released = {key for key, value in released.items() if values[key] == value}
    return {key: values[key] for key in values.keys() - NOT_IN_RECIPE - as_released}
