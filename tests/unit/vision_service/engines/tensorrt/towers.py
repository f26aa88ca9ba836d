"""Checkpoints to build from: the golden ones, a small 6B-style tower, towers of released shapes."""

from __future__ import annotations

import json
from pathlib import Path

from tests.unit.vision_service.checkpoints import (
    SMALL_6B,
    changed,
    random_tensors,
    write_checkpoint,
)

DATA = Path(__file__).parents[4] / "data"
GOLDEN = [DATA / "golden" / name for name in ("tiny-qwen2", "tiny-internlm2")]
# Random weights of about the spread of trained ones: the values stay finite in float16 too.
SPREAD = 0.1


def write_small_6b(folder: Path) -> Path:
    """Writes a tower of 2 layers in the 6B's style, which the golden checkpoints do not have."""
    return write_checkpoint(folder, SMALL_6B)


def write_with_options(folder: Path) -> Path:
    """Writes one whose tokens are in columns, and whose tiles are larger than its positions'."""
    return write_checkpoint(folder, changed(SMALL_6B, ps_version="v1", force_image_size=56))


def write_released(folder: Path, size: str, layer_count: int) -> Path:
    """Writes a tower of a released size's widths with random weights, cut to some layers."""
    file = DATA / "configs" / f"InternVL2_5-{size}" / "config.json"
    config = changed(json.loads(file.read_text()), vision_config={"num_hidden_layers": layer_count})
    tensors = {name: values * SPREAD for name, values in random_tensors(config).items()}
    return write_checkpoint(folder, config, tensors)
