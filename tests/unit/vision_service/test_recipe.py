"""The recipe: it changes with all that decides an embedding, and with nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.unit.vision_service.checkpoints import write_checkpoint
from vision_service import recipe
from vision_service.checkpoint import VisionConfig
from vision_service.recipe import recipe_sha256

WEIGHTS = bytes(32)


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


def test_the_tile_cap_is_no_part_of_it(config: VisionConfig) -> None:
    other = dataclasses.replace(config, max_dynamic_patch=24)
    assert recipe_sha256(config, WEIGHTS, torch.float32) == recipe_sha256(
        other, WEIGHTS, torch.float32
    )
