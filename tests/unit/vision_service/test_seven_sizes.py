"""The towers of all seven sizes, built without memory from their config.json."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.vision_service.checkpoints import original_shapes
from vision_service.checkpoint import VisionConfig
from vision_service.engines.torch.intern_vit import VisionModel

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
def test_a_tile_becomes_256_rows_of_the_llm_width(size: str) -> None:
    config, model, _ = built(size)
    embeddings = model(torch.empty(2, 3, 448, 448, device="meta"))
    assert embeddings.shape == (2, 256, SIZES[size][1])
    assert (config.tokens_per_tile, config.output_size) == (256, SIZES[size][1])


# What InternVL3's vision_config holds besides, of a mixture of experts that is not there.
DEAD_KEYS = {
    "use_moe": False,
    "num_experts": 8,
    "num_routed_experts": 4,
    "num_shared_experts": 4,
    "capacity_factor": 1.2,
    "eval_capacity_factor": 1.4,
    "moe_coeff_ratio": 0.5,
    "moe_intermediate_size": 768,
    "moe_output_scale": 4.0,
    "noisy_gate_policy": "RSample_before",
    "shared_expert_intermediate_size": 3072,
    "use_residual": True,
    "use_rts": False,
    "use_weighted_residual": False,
    "initializer_factor": 0.1,
}


@pytest.mark.parametrize("size", ["1B", "26B"])
@pytest.mark.parametrize(
    ("changes", "tile_size", "row_count"),
    [
        ({"vision_config": DEAD_KEYS, "pad2square": False, "image_fold": None}, 448, 256),
        ({"force_image_size": None}, 448, 256),
        ({"force_image_size": 224}, 224, 64),
        ({"force_image_size": 672, "ps_version": "v1"}, 672, 576),
    ],
    ids=["dead keys", "null", "224", "672"],
)
def test_a_tower_takes_tiles_of_another_size(
    tmp_path: Path, size: str, changes: dict[str, Any], tile_size: int, row_count: int
) -> None:
    document = json.loads((CONFIGS / f"InternVL2_5-{size}" / "config.json").read_text())
    tower = document["vision_config"] | changes.get("vision_config", {})
    document = document | changes | {"vision_config": tower}
    (tmp_path / "config.json").write_text(json.dumps(document))
    config = VisionConfig.from_checkpoint(tmp_path)
    with torch.device("meta"):
        model = VisionModel(config)
        # Stored for 448 pixels, whatever the tiles have.
        assert model.vision_model.embeddings.position_embedding.shape[1] == 1 + 32 * 32
        model.vision_model.embeddings.fit_positions()
        embeddings = model(torch.empty(1, 3, tile_size, tile_size))
    assert embeddings.shape == (1, row_count, SIZES[size][1])
    assert (config.tile_size, config.tokens_per_tile) == (tile_size, row_count)
