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
        EngineStartError: the device is not to be had, or too small.
    """
    match settings.engine:
        case "torch":
            from vision_service.engines.torch.engine import start_engine

            return start_engine(settings, config)
        case "tensorrt":
            from vision_service.engines.tensorrt.engine import start_engine as start_plan

            assert settings.plan is not None
            return start_plan(settings.plan, settings.checkpoint, config, torch.device("cuda"))
