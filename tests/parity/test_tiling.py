"""The grid of every image size in the golden data."""

from __future__ import annotations

import re
from pathlib import Path

from tests.parity import golden
from vision_service.tiling import choose_grid


def test_every_size_gets_the_reference_grid(golden_dir: Path) -> None:
    data = golden.read_json(golden_dir / "tiling.json")
    checked = 0
    for case in data["cases"]:
        for key, expected in case.items():
            if match := re.fullmatch(r"max_num_(\d+)", key):
                cap, tile_size = int(match[1]), data["image_size"]
                grid = choose_grid(case["width"], case["height"], cap, tile_size)
                found = [grid.column_count, grid.row_count, grid.tile_count]
                assert found == expected, (case["width"], case["height"], key)
                checked += 1
    assert checked >= len(data["cases"])
