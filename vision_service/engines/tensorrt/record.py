"""The record of a plan, plan.json: what the plan was made from, by what and for which GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from vision_service.engines.base import EngineStartError

RECORD_FILE = "plan.json"
PLAN_FILE = "vision.plan"
ONNX_FILE = "vision.onnx"
# The input and the output of the graph and of the plan (see vit_graph.write_graph).
INPUT, OUTPUT = "tiles", "embeddings"

Library = Literal["tensorrt", "tensorrt_rtx"]
Dtype = Literal["bfloat16", "float16", "float32"]


class TileCounts(NamedTuple):
    """The profile of a plan: the fewest tiles of a run, those it is fastest for, and the most."""

    min: int
    opt: int
    max: int


class Gpu(NamedTuple):
    """A kind of GPU: its name, and its compute capability, e.g. "9.0"."""

    name: str
    compute_capability: str

    @classmethod
    def present(cls) -> Gpu | None:
        """Returns this machine's first GPU; None where there is none."""
        if not torch.cuda.is_available():
            return None
        major, minor = torch.cuda.get_device_capability()
        return cls(torch.cuda.get_device_name(), f"{major}.{minor}")


class PlanRecord(BaseModel):
    """What plan.json holds; digests are SHA-256 in hexadecimal.

    Attributes:
        plan_sha256: of the plan.
        weights_sha256: of the checkpoint's vision tensors as stored (checkpoint.TensorDigest).
        recipe_sha256: of all that decides what tiles become (recipe.plan_recipe_sha256).
        dtype: element type of the embeddings, e.g. "bfloat16".
        tile_counts: the profile.
        library: what built the plan, and alone can run it.
        library_version: of just this version.
        gpu: what the plan was built on and for; None for TensorRT-RTX: for all that it knows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan_sha256: str
    weights_sha256: str
    recipe_sha256: str
    dtype: Dtype
    tile_counts: TileCounts
    library: Library
    library_version: str
    gpu: Gpu | None

    @classmethod
    def read(cls, folder: Path) -> PlanRecord:
        """Reads a plan folder's record.

        Raises:
            EngineStartError: there is none, or it is not one of this version.
        """
        file = folder / RECORD_FILE
        try:
            return cls.model_validate_json(file.read_bytes())
        except (OSError, ValidationError) as error:
            reason = " ".join(str(error).split())
            raise EngineStartError(f"{file}: is no record of a finished plan: {reason}") from error

    def write(self, folder: Path) -> None:
        """Writes the record into the plan's folder."""
        (folder / RECORD_FILE).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
