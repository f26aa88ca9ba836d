"""The recipe: everything but the image file and the tile cap that decides an embedding."""

from __future__ import annotations

import dataclasses
import hashlib
import json

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
        transparency: what transparent pixels become. A plan, which sees tiles, has it as it is by
            default, whatever it is served with.
    """
    values = dataclasses.asdict(config)
    recipe = {
        "contract": CONTRACT,
        "config": {key: values[key] for key in values.keys() - NOT_IN_RECIPE},
        "weights": weights_sha256.hex(),
        "resize": RESIZE,
        "dtype": str(dtype),
        "transparency": transparency,
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).digest()
