"""The towers of all seven sizes, built without memory from their config.json."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.unit.vision_service.checkpoints import original_shapes
from vision_service.checkpoint import VisionConfig
from vision_service.engines.torch.intern_vit import VisionModel
from vision_service.memory import weight_byte_count

CONFIGS = Path(__file__).parents[2] / "data" / "configs"
# Published as 304 M and 5.54 B; to the unit they follow from the widths of the two towers.
TOWER_300M, TOWER_6B = 304_012_288, 5_536_496_000
# Size -> parameters of the tower, and the LLM's hidden size.
SIZES = {
    "1B": (TOWER_300M, 896),
    "2B": (TOWER_300M, 2048),
    "4B": (TOWER_300M, 2048),
    "8B": (TOWER_300M, 4096),
    "26B": (TOWER_6B, 6144),
    "38B": (TOWER_6B, 5120),
    "78B": (TOWER_6B, 8192),
}


@cache
def built(size: str) -> tuple[VisionConfig, VisionModel, dict[str, tuple[int, ...]]]:
    """Returns the config, the model, and the shapes that the original checkpoint has."""
    folder = CONFIGS / f"InternVL2_5-{size}"
    config = VisionConfig.from_checkpoint(folder)
    with torch.device("meta"):
        model = VisionModel(config)
    return config, model, original_shapes(json.loads((folder / "config.json").read_text()))


@pytest.mark.parametrize("size", SIZES)
def test_every_original_tensor_has_its_place(size: str) -> None:
    _, model, expected = built(size)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == expected


@pytest.mark.parametrize("size", SIZES)
def test_the_tower_has_the_published_parameter_count(size: str) -> None:
    _, model, _ = built(size)
    assert sum(p.numel() for p in model.vision_model.parameters()) == SIZES[size][0]


@pytest.mark.parametrize("size", SIZES)
def test_the_memory_that_is_asked_for_is_what_the_weights_take(size: str) -> None:
    config, model, _ = built(size)
    taken = sum(p.numel() for p in model.parameters())
    assert weight_byte_count(config, itemsize=2) == pytest.approx(2 * taken, rel=1e-2)


@pytest.mark.parametrize("size", SIZES)
def test_a_tile_becomes_256_rows_of_the_llm_width(size: str) -> None:
    config, model, _ = built(size)
    embeddings = model(torch.empty(2, 3, 448, 448, device="meta"))
    assert embeddings.shape == (2, 256, SIZES[size][1])
    assert (config.tokens_per_tile, config.output_size) == (256, SIZES[size][1])
