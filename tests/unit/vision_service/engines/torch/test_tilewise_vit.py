"""The tower that runs a tile at a time against the model as it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.vision_service.checkpoints import SMALL_6B, changed, write_checkpoint
from vision_service.checkpoint import VisionConfig
from vision_service.engines.torch.engine import load_model
from vision_service.engines.torch.tilewise_vit import TilewiseVisionModel

SMALL_300M = changed(
    SMALL_6B,
    vision_config={"norm_type": "layer_norm", "qkv_bias": True, "qk_normalization": False},
)


@pytest.mark.parametrize(
    "checkpoint",
    [
        pytest.param(SMALL_6B, id="6B"),
        pytest.param(SMALL_300M, id="300M"),
        pytest.param(changed(SMALL_6B, select_layer=-2), id="last layer but one"),
        pytest.param(changed(SMALL_6B, ps_version="v1"), id="pixel shuffle v1"),
        pytest.param(changed(SMALL_6B, force_image_size=42), id="another tile size"),
    ],
)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
)
def test_a_tile_at_a_time_is_the_same_function(
    tmp_path: Path, checkpoint: Any, dtype: torch.dtype, tolerance: float
) -> None:
    folder = write_checkpoint(tmp_path, checkpoint)
    config = VisionConfig.from_checkpoint(folder)
    exact, _ = load_model(folder, config, torch.device("cpu"), torch.float64)
    shape = (3, 3, config.tile_size, config.tile_size)
    values = torch.randn(shape, dtype=torch.float64, generator=torch.Generator())
    with torch.inference_mode():
        expected = exact(values)
    model, _ = load_model(folder, config, torch.device("cpu"), dtype)
    found = TilewiseVisionModel(model, config)(values.to(dtype))
    assert (found.shape, found.dtype) == (expected.shape, dtype)
    assert (found - expected).norm() < tolerance * expected.norm()
