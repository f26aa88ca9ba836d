"""Which engine the settings name: the one place that knows all of them."""

from __future__ import annotations

import torch

from vision_service.checkpoint import VisionConfig
from vision_service.engines.base import VisionEngine
from vision_service.settings import Settings


def create_engine(settings: Settings, config: VisionConfig) -> VisionEngine:
    """Loads the engine that the settings name and warms it with a real forward pass.

    Raises:
        CheckpointError: the weights are missing, damaged or not those that the config describes.
        EngineStartError: the device is not to be had, or too small; the plan cannot be run here.
    """
    match settings.engine:
        case "torch":
            from vision_service.engines.torch.engine import start_engine

            return start_engine(settings, config)
        case "tensorrt":
            from vision_service.engines.tensorrt.engine import start_engine as start_plan

            assert settings.tensorrt.plan is not None
            device = torch.device("cuda")
            return start_plan(settings.tensorrt.plan, settings.checkpoint, config, device)


def run_tile_counts(settings: Settings) -> tuple[int, ...]:
    """Returns the numbers of tiles that the engine's runs are made for, the largest last.

    Raises:
        EngineStartError: they are those of a plan, and there is none.
    """
    match settings.engine:
        case "torch":
            return (settings.max_batch_tile_count,)
        case "tensorrt":
            from vision_service.engines.tensorrt.record import PlanRecord

            assert settings.tensorrt.plan is not None
            return PlanRecord.read(settings.tensorrt.plan).tile_counts
