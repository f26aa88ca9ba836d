"""The composition root of the builder: checkpoint -> ONNX graph -> plan and its record."""

from __future__ import annotations

import hashlib
import sys
from types import ModuleType

import structlog
import torch

from protos.process import logs
from protos.process.settings import read_settings
from vision_service.checkpoint import CheckpointError, VisionConfig
from vision_service.engines.tensorrt.build_settings import BuildSettings
from vision_service.engines.tensorrt.builder import build_plan, import_library, target_gpu
from vision_service.engines.tensorrt.record import (
    ONNX_FILE,
    PLAN_FILE,
    RECORD_FILE,
    PlanError,
    PlanRecord,
)
from vision_service.engines.torch.engine import DTYPES, load_model
from vision_service.recipe import recipe_sha256

logger = structlog.get_logger()


def main() -> None:
    """Builds; exits with 1 when that cannot be done."""
    settings = read_settings(BuildSettings)
    logs.configure("info", settings.log_format)
    try:
        build(settings)
    except (CheckpointError, PlanError, OSError) as error:
        logger.error("build_failed", error=str(error))
        sys.exit(1)


def build(settings: BuildSettings) -> None:
    """Writes the ONNX graph and, unless only that is wanted, the plan and then its record.

    Raises:
        CheckpointError: the checkpoint is not one that the vision service serves.
        PlanError: a library is missing, or refuses the graph.
        OSError: a file cannot be written.
    """
    trt = None if settings.onnx_only else import_library(settings.library)
    config = VisionConfig.from_checkpoint(settings.checkpoint)
    settings.output.mkdir(parents=True, exist_ok=True)
    weights_sha256 = export(settings, config)
    if trt is not None:
        write_plan(settings, config, weights_sha256, trt)


def export(settings: BuildSettings, config: VisionConfig) -> bytes:
    """Writes the ONNX graph; returns the digest of the weights in it; errors as `build`."""
    try:
        from vision_service.engines.tensorrt.vit_graph import write_graph
    except ModuleNotFoundError as error:
        raise PlanError(
            f"{error.name} is not installed; pip install 'internvl-serving[build]'"
        ) from error
    logger.info("reading", checkpoint=str(settings.checkpoint))
    model, weights_sha256 = load_model(settings.checkpoint, config, torch.device("cpu"), None)
    file = settings.output / ONNX_FILE
    write_graph(
        model,
        config,
        DTYPES[settings.dtype],
        file,
        on_layer=lambda layer, count: logger.info("writing_graph", layer=layer, of=count),
    )
    logger.info("wrote_graph", file=str(file))
    return weights_sha256


def write_plan(
    settings: BuildSettings, config: VisionConfig, weights_sha256: bytes, trt: ModuleType
) -> None:
    """Builds the plan of the graph; the record comes last, and without it a plan is none."""
    gpu = target_gpu(trt)
    (settings.output / RECORD_FILE).unlink(missing_ok=True)
    plan = build_plan(trt, settings.output / ONNX_FILE, settings.tile_counts)
    file = settings.output / PLAN_FILE
    file.write_bytes(plan)
    PlanRecord(
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        weights_sha256=weights_sha256.hex(),
        recipe_sha256=recipe_sha256(config, weights_sha256, DTYPES[settings.dtype]).hex(),
        dtype=settings.dtype,
        tile_counts=settings.tile_counts,
        library=trt.__name__,
        library_version=trt.__version__,
        gpu=gpu,
    ).write(settings.output)
    logger.info("wrote_plan", file=str(file), bytes=plan.nbytes)


if __name__ == "__main__":
    main()
