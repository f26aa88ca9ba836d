"""The command `internvl-vision-build`: checkpoint -> ONNX graph -> plan and its record."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import structlog
import torch
from pydantic import AfterValidator, Field, model_validator
from pydantic_settings import SettingsConfigDict

from protos.checkpoint.location import CheckpointFolder
from protos.checkpoint.section import CheckpointError
from protos.process import logs
from protos.process.logs import LogFormat
from protos.process.settings import Options, read_settings
from vision_service.checkpoint import VisionConfig
from vision_service.engines.base import DTYPES
from vision_service.engines.tensorrt.builder import (
    BuildError,
    build_plan,
    import_library,
    target_gpu,
)
from vision_service.engines.tensorrt.record import (
    ONNX_FILE,
    PLAN_FILE,
    RECORD_FILE,
    Dtype,
    PlanRecord,
    TileCounts,
)
from vision_service.engines.torch.engine import load_model
from vision_service.recipe import plan_recipe_sha256
from vision_service.settings import LARGEST_BATCH_TILE_COUNT

logger = structlog.get_logger()


class BuildSettings(Options):
    """Builds a TensorRT plan of the vision tower of an InternVL checkpoint."""

    model_config = SettingsConfigDict(
        env_prefix="INTERNVL_VISION_BUILD_", cli_prog_name="internvl-vision-build"
    )

    checkpoint: CheckpointFolder
    """Folder of an original InternVL checkpoint, with config.json and its safetensors, or a hub id
    such as OpenGVLab/InternVL2_5-8B, which is taken from the local Hugging Face cache."""
    output: Annotated[Path, AfterValidator(Path.absolute)]
    """Folder for the ONNX graph, the plan and plan.json; what an earlier build left is replaced."""
    dtype: Dtype = "bfloat16"
    """Element type of the plan's weights, arithmetic and embeddings."""
    min_tile_count: int = Field(default=1, ge=1)
    """Fewest tiles of one run; the engine fills smaller batches up."""
    opt_tile_count: int = Field(default=13, ge=1)
    """Tiles that the plan is made fastest for: 13 are one image of the usual cap."""
    max_tile_count: int = Field(default=26, ge=1, le=LARGEST_BATCH_TILE_COUNT)
    """Most tiles of one run; the engine splits larger batches. Decides the plan's memory."""
    library: Literal["auto", "tensorrt", "tensorrt_rtx"] = "auto"
    """What builds and later runs the plan: tensorrt, for the GPU in this machine, or tensorrt_rtx,
    for any RTX GPU, which also builds where there is none; auto: the first that is installed."""
    onnx_only: bool = False
    """Stop once the ONNX graph is written; needs no TensorRT."""
    log_format: LogFormat = "console"
    """How progress is written: json for machines, console for people."""

    @property
    def tile_counts(self) -> TileCounts:
        """The plan's profile."""
        return TileCounts(self.min_tile_count, self.opt_tile_count, self.max_tile_count)

    @model_validator(mode="after")
    def _refuse_unordered_counts(self) -> BuildSettings:
        if not self.min_tile_count <= self.opt_tile_count <= self.max_tile_count:
            raise ValueError(
                f"min, opt and max tile count are {self.min_tile_count}, {self.opt_tile_count} "
                f"and {self.max_tile_count}; none may be smaller than the one before"
            )
        return self


def main() -> None:
    """Builds; exits with 1 when that cannot be done."""
    settings = read_settings(BuildSettings)
    logs.configure("info", settings.log_format)
    try:
        build(settings)
    except (CheckpointError, BuildError, OSError) as error:
        logger.error("build_failed", error=str(error))
        sys.exit(1)


def build(settings: BuildSettings) -> None:
    """Writes the ONNX graph and, unless only that is wanted, the plan and then its record.

    Raises:
        CheckpointError: the checkpoint is not one that the vision service serves.
        BuildError: a library is missing, or refuses the graph.
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
        raise BuildError(
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
        recipe_sha256=plan_recipe_sha256(config, weights_sha256, DTYPES[settings.dtype]).hex(),
        dtype=settings.dtype,
        tile_counts=settings.tile_counts,
        library=trt.__name__,
        library_version=trt.__version__,
        gpu=gpu,
    ).write(settings.output)
    logger.info("wrote_plan", file=str(file), plan_byte_count=plan.nbytes)


if __name__ == "__main__":
    main()
