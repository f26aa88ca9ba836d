"""The fused tower against the model as it is written, and its Triton programs on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.vision_service.checkpoints import SMALL_6B, changed, write_checkpoint
from vision_service.checkpoint import VisionConfig
from vision_service.engines.torch.engine import load_model, normalise
from vision_service.engines.torch.fused_vit import (
    TORCH_OPERATIONS,
    FusedVisionModel,
    Norm,
    torch_attention,
    torch_norm,
)

CPU = torch.device("cpu")
SMALL_300M = changed(
    SMALL_6B,
    vision_config={"norm_type": "layer_norm", "qkv_bias": True, "qk_normalization": False},
)
TILES = torch.arange(3 * 3 * 28 * 28).mul(37).remainder(256).to(torch.uint8).view(3, 3, 28, 28)


@pytest.mark.parametrize(
    "checkpoint",
    [
        pytest.param(SMALL_6B, id="6B"),
        pytest.param(SMALL_300M, id="300M"),
        pytest.param(changed(SMALL_6B, select_layer=-2), id="last layer but one"),
        pytest.param(changed(SMALL_6B, ps_version="v1"), id="pixel shuffle v1"),
        pytest.param(changed(SMALL_6B, vision_config={"image_size": 56}), id="half the size"),
    ],
)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
)
def test_the_fused_tower_is_the_same_function(
    tmp_path: Path, checkpoint: Any, dtype: torch.dtype, tolerance: float
) -> None:
    folder = write_checkpoint(tmp_path, checkpoint)
    config = VisionConfig.from_checkpoint(folder)
    model, _ = load_model(folder, config, CPU, torch.float64)
    with torch.inference_mode():
        # 1e-6: the pixels of the reference have the precision of float32.
        expected = model(normalise(TILES, config.mean, config.std).double())
    found = FusedVisionModel(model, config, TORCH_OPERATIONS, CPU, dtype)(TILES)
    assert (found.shape, found.dtype) == (expected.shape, dtype)
    assert (found - expected).norm() < tolerance * expected.norm()


def norms(width: int, device: torch.device) -> list[Norm]:
    weight, bias, shift = torch.randn(3, width, generator=torch.Generator().manual_seed(0)).to(
        device
    )
    return [
        Norm(weight, bias, 1e-6, shift),
        Norm(weight, bias, 1e-6),
        Norm(weight, None, 1e-6, shift),
        Norm(weight, None, 1e-6),
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("width", [40, 1024, 3200, 12800])
def test_the_norm_program_is_the_norm(width: int) -> None:
    from vision_service.engines.torch.triton_programs import shifted_norm

    device = torch.device("cuda")
    joint = torch.randn(5000, 3 * width, device=device).bfloat16()
    states = joint[:, width : 2 * width]
    for norm in norms(width, device):
        expected = torch_norm(states.float(), norm)
        found = shifted_norm(states, norm)
        torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-2)
        other = joint.clone()
        shifted_norm(other[:, :width], norm, out=other[:, :width])
        assert torch.equal(other[:, width:], joint[:, width:])


@pytest.mark.gpu
@pytest.mark.parametrize(("head_count", "head_size"), [(16, 64), (25, 128), (4, 16)])
@pytest.mark.parametrize("tile_count", [1, 3])
def test_the_attention_program_is_attention(
    head_count: int, head_size: int, tile_count: int
) -> None:
    from vision_service.engines.torch.triton_programs import attention

    shape = (tile_count * 1025, 3 * head_count * head_size)
    qkv = (2 * torch.randn(shape, device="cuda")).bfloat16()
    expected = torch_attention(qkv.float(), tile_count, head_count)
    found = attention(qkv, tile_count, head_count)
    assert (found - expected).norm() < 5e-3 * expected.norm()
    # Every row by itself: an error in the class token's would hide among a thousand others.
    assert ((found - expected).norm(dim=1) < 2e-2 * expected.norm(dim=1)).all()
