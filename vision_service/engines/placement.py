"""Where the engine runs: in this process, or in another one that this one speaks to."""

from __future__ import annotations

from vision_service.checkpoint import VisionConfig
from vision_service.engines.base import VisionEngine
from vision_service.engines.create import create_engine
from vision_service.settings import Settings


def place_engine(settings: Settings, config: VisionConfig) -> VisionEngine:
    """Has the engine loaded where the settings say, and warmed by a real forward pass.

    Raises:
        CheckpointError, EngineStartError: as of `create_engine`; from another process it is always
            the latter.
    """
    if settings.engine_process in ("auto", "none"):
        return create_engine(settings, config)
    from vision_service.engines.process.engine import start_engine

    return start_engine(settings)
