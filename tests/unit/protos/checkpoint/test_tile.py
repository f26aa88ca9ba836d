"""The tile of a config.json: which key decides its size, and the tokens that it becomes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from protos.checkpoint.section import CheckpointError, Section
from protos.checkpoint.tile import Tile


def tile_of(values: dict[str, Any]) -> Tile:
    return Tile.of_model(Section(Path("config.json"), values))


@pytest.mark.parametrize(
    ("values", "size", "token_count"),
    [
        ({"force_image_size": 448, "vision_config": {"image_size": 448}}, 448, 256),
        ({"force_image_size": None, "vision_config": {"image_size": 448}}, 448, 256),
        ({"force_image_size": 0, "vision_config": {"image_size": 448}}, 448, 256),
        ({"vision_config": {"image_size": 448}}, 448, 256),
        ({"force_image_size": 224, "vision_config": {"image_size": 448}}, 224, 64),
        ({"force_image_size": 448, "vision_config": {"image_size": 224}}, 448, 256),
        ({"force_image_size": 448, "vision_config": {"patch_size": 16}}, 448, 196),
        ({"vision_config": {}}, 224, 64),
        ({}, 224, 64),
    ],
)
def test_force_image_size_goes_before_the_towers(
    values: dict[str, Any], size: int, token_count: int
) -> None:
    tile = tile_of(values)
    assert (tile.size, tile.token_count) == (size, token_count)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"force_image_size": 450}, "config.json: force_image_size is 450, not a multiple of 28"),
        ({"force_image_size": -28}, "force_image_size is -28; it must be 1 to 1048576"),
        ({"force_image_size": "448"}, "force_image_size is '448', not of type int"),
        # 17 patches an edge, which do not pair up.
        ({"vision_config": {"image_size": 238}}, "vision_config.image_size is 238, not a multiple"),
        ({"vision_config": 448}, "vision_config is 448, not of type dict"),
    ],
)
def test_a_tile_that_is_no_squares_of_patches_is_refused(
    values: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(CheckpointError, match=re.escape(complaint)):
        tile_of(values)
