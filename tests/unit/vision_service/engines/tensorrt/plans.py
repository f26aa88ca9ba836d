"""Plans of the tests' double of TensorRT, with the records that the builder would write."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from tests.doubles import tensorrt
from vision_service.checkpoint import VisionConfig
from vision_service.engines.base import DTYPES
from vision_service.engines.tensorrt.record import PLAN_FILE, PlanRecord, TileCounts
from vision_service.engines.torch.engine import TorchEngine, load_model
from vision_service.recipe import plan_recipe_sha256

COUNTS = TileCounts(1, 3, 5)


def torch_engine(checkpoint: Path, dtype: str = "float32") -> TorchEngine:
    config = VisionConfig.from_checkpoint(checkpoint)
    model, digest = load_model(checkpoint, config, torch.device("cpu"), DTYPES[dtype])
    return TorchEngine(model, config, digest)


def write_plan(
    checkpoint: Path,
    dtype: str = "float32",
    tile_counts: TileCounts = COUNTS,
    device: str = "cpu",
    weights: Path | None = None,
    **changes: Any,
) -> Path:
    """Writes, beside the checkpoint, what the builder would have with the double.

    Args:
        checkpoint: what the plan says that it was made from.
        dtype: of the plan.
        tile_counts: its profile.
        device: where the double runs it.
        weights: the checkpoint that it was really made from; default: the same.
        changes: to the record.
    """
    folder = checkpoint.with_name("plan")
    folder.mkdir()
    config = VisionConfig.from_checkpoint(checkpoint)
    weights_sha256 = torch_engine(checkpoint).weights_sha256
    plan = tensorrt.plan_of(weights or checkpoint, dtype, tile_counts, device)
    (folder / PLAN_FILE).write_bytes(plan)
    values = {
        "plan_sha256": hashlib.sha256(plan).hexdigest(),
        "weights_sha256": weights_sha256.hex(),
        "recipe_sha256": plan_recipe_sha256(config, weights_sha256, DTYPES[dtype]).hex(),
        "dtype": dtype,
        "tile_counts": tile_counts,
        "library": "tensorrt",
        "library_version": tensorrt.__version__,
        "gpu": None,
    }
    PlanRecord.model_validate({**values, **changes}).write(folder)
    return folder
