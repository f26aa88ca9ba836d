"""Every option of the builder: a field is a flag, an environment variable and its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_settings import SettingsConfigDict

from protos.process.logs import LogFormat
from protos.process.settings import Options
from vision_service.engines.tensorrt.record import TileCounts


class BuildSettings(Options):
    """Options of the builder."""

    model_config = SettingsConfigDict(
        env_prefix="INTERNVL_VISION_BUILD_",
        cli_prog_name="internvl-vision-build",
    )

    checkpoint: Annotated[Path, AfterValidator(Path.absolute)]
    """Folder of an original InternVL2.5 checkpoint: config.json and its safetensors."""
    output: Annotated[Path, AfterValidator(Path.absolute)]
    """Folder for the ONNX graph, the plan and plan.json; what an earlier build left is replaced."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Element type of the plan's weights, arithmetic and embeddings."""
    min_tile_count: int = Field(default=1, ge=1)
    """Fewest tiles of one run; the engine fills smaller batches up."""
    opt_tile_count: int = Field(default=13, ge=1)
    """Tiles that the plan is made fastest for: 13 are one image of the usual cap."""
    max_tile_count: int = Field(default=26, ge=1)
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
