"""The embeddings of every golden checkpoint, and two stages on the way to them.

No value may be off by more than 1e-4 of the tensor's root mean square, which is 1 to 3 in the data
that ships: the smallest mistake that its README lists (tanh for erf GELU) changes a value by 6e-4.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.parity import golden
from tests.tiled_files import tile_file
from vision_service.checkpoint import VisionConfig
from vision_service.engines.create import create_engine
from vision_service.engines.torch.engine import load_model, normalise
from vision_service.engines.torch.intern_vit import VisionModel, pixel_shuffle
from vision_service.settings import Settings, TorchOptions

TOLERANCE = 1e-4


@pytest.fixture
def config(checkpoint_dir: Path) -> VisionConfig:
    return VisionConfig.from_checkpoint(checkpoint_dir)


@pytest.fixture
def expected(checkpoint_dir: Path) -> dict[str, torch.Tensor]:
    return golden.read_tensors(checkpoint_dir / "golden.safetensors")


@pytest.fixture
def model(checkpoint_dir: Path, config: VisionConfig) -> VisionModel:
    golden.need_weights(checkpoint_dir)
    model, _ = load_model(checkpoint_dir, config, torch.device("cpu"), torch.float32)
    return model.eval()


def image_tiles(data: bytes, config: VisionConfig) -> torch.Tensor:
    tiled = tile_file(
        data,
        tile_size=config.tile_size,
        max_tile_count=config.max_dynamic_patch,
        max_pixel_count=10**8,
        transparency="drop",
    )
    return torch.from_numpy(tiled.tiles)


def last_hidden(data: bytes, config: VisionConfig, model: VisionModel) -> torch.Tensor:
    tiles = image_tiles(data, config)
    with torch.inference_mode():
        hidden: torch.Tensor = model.vision_model(normalise(tiles, config.mean, config.std))
    return hidden


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    bound = TOLERANCE * expected.pow(2).mean().sqrt().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)


def test_vit_last_hidden(
    golden_dir: Path, config: VisionConfig, model: VisionModel, expected: dict[str, torch.Tensor]
) -> None:
    for data, hidden in golden.images_named(golden_dir, expected, "vit_last_hidden"):
        assert_near(last_hidden(data, config, model), hidden)


def test_pixel_shuffle(
    golden_dir: Path, config: VisionConfig, model: VisionModel, expected: dict[str, torch.Tensor]
) -> None:
    for data, shuffled in golden.images_named(golden_dir, expected, "pixel_shuffled"):
        hidden = last_hidden(data, config, model)
        assert_near(pixel_shuffle(hidden[:, 1:]), shuffled)


def test_engine_embeddings(
    golden_dir: Path,
    checkpoint_dir: Path,
    config: VisionConfig,
    expected: dict[str, torch.Tensor],
) -> None:
    golden.need_weights(checkpoint_dir)
    torch_options = TorchOptions(device="cpu", dtype="float32", thread_count=1)
    settings = Settings(checkpoint=checkpoint_dir, torch=torch_options)
    engine = create_engine(settings, config)
    for data, embeddings in golden.images_named(golden_dir, expected, "embeds"):
        assert_near(engine.encode(image_tiles(data, config)), embeddings)
