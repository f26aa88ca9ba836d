"""The recipe: it changes with all that decides an embedding, and with nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.vision_service.checkpoints import write_checkpoint
from vision_service import recipe
from vision_service.checkpoint import VisionConfig
from vision_service.recipe import plan_recipe_sha256, recipe_sha256

WEIGHTS = bytes(32)
RELEASED_8B = "3bd2e4a8ee14d8409ff48ed691341d2f31e17d3ee9f3bcf0d185cb2d488c785d"


@pytest.fixture
def config(tmp_path: Path) -> VisionConfig:
    return VisionConfig.from_checkpoint(write_checkpoint(tmp_path))


def test_it_is_the_same_for_the_same(config: VisionConfig) -> None:
    digests = {recipe_sha256(config, WEIGHTS, torch.float32) for _ in range(2)}
    assert [len(digest) for digest in digests] == [32]


def test_it_covers_weights_type_config_and_code(
    config: VisionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = dataclasses.replace(config, mean=(0.5, 0.5, 0.5))
    digests = [
        recipe_sha256(config, WEIGHTS, torch.float32),
        recipe_sha256(config, bytes(31) + b"\1", torch.float32),
        recipe_sha256(config, WEIGHTS, torch.bfloat16),
        recipe_sha256(other, WEIGHTS, torch.float32),
        recipe_sha256(config, WEIGHTS, torch.float32, "drop"),
    ]
    for name in ("CONTRACT", "RESIZE"):
        monkeypatch.setattr(recipe, name, f"another {name}")
        digests.append(recipe_sha256(config, WEIGHTS, torch.float32))
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize(
    "change",
    [
        {"dynamic_image_size": False},
        {"min_dynamic_patch": 2},
        {"use_thumbnail": False},
        {"ps_version": "v1"},
        {"image_size": 56},  # whose position embedding is interpolated
        {"tile_size": 56},
    ],
)
def test_it_covers_each_option(config: VisionConfig, change: dict[str, Any]) -> None:
    other = dataclasses.replace(config, **change)
    assert recipe_sha256(other, WEIGHTS, torch.float32) != recipe_sha256(
        config, WEIGHTS, torch.float32
    )
    cut_otherwise = change.keys() <= recipe.RELEASED_TILING.keys()
    same_plan = plan_recipe_sha256(other, WEIGHTS, torch.float32) == plan_recipe_sha256(
        config, WEIGHTS, torch.float32
    )
    assert same_plan == cut_otherwise


def test_that_of_a_released_checkpoint_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored embeddings, plans and caches are named by it: no new option may change it."""
    monkeypatch.setattr(recipe, "RESIZE", "pillow-13 bicubic")
    folder = Path(__file__).parents[2] / "data" / "configs" / "InternVL2_5-8B"
    config = VisionConfig.from_checkpoint(folder)
    assert recipe_sha256(config, WEIGHTS, torch.bfloat16).hex() == RELEASED_8B


def test_the_tile_cap_is_no_part_of_it(config: VisionConfig) -> None:
    other = dataclasses.replace(config, max_dynamic_patch=24)
    assert recipe_sha256(config, WEIGHTS, torch.float32) == recipe_sha256(
        other, WEIGHTS, torch.float32
    )
