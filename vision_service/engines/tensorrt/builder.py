"""TensorRT's builder: an ONNX graph in, a plan out, with progress in the log."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import structlog

from vision_service.engines.tensorrt.record import Gpu, Library, TileCounts

SECONDS_BETWEEN_EVENTS = 2.0
logger = structlog.get_logger()


class BuildError(Exception):
    """A plan cannot be built: a sentence that names what is missing, or the file at fault."""


def import_library(name: str) -> ModuleType:
    """Returns TensorRT or TensorRT-RTX, whose Python interface is the same.

    Args:
        name: which (see record.Library); auto: the first that can be imported.

    Raises:
        BuildError: it cannot be imported.
    """
    failures = []
    for candidate in get_args(Library) if name == "auto" else (name,):
        try:
            return importlib.import_module(candidate)
        except (ImportError, OSError) as error:
            failures.append(f"{candidate} cannot be imported ({error})")
    raise BuildError(f"{' and '.join(failures)}; install one with pip")


def target_gpu(trt: ModuleType) -> Gpu | None:
    """Returns what the library builds for: this machine's GPU; None for all that RTX knows.

    Raises:
        BuildError: TensorRT needs a GPU to build, and there is none.
    """
    if trt.__name__ == "tensorrt_rtx":
        return None
    gpu = Gpu.present()
    if gpu is None:
        raise BuildError(
            "tensorrt builds for the GPU in this machine, and PyTorch finds none; "
            "tensorrt_rtx builds without one"
        )
    return gpu


def build_plan(trt: ModuleType, onnx_file: Path, tile_counts: TileCounts) -> memoryview:
    """Returns the plan of a graph whose one input is [tile_count, ...], all other sizes known.

    The network is strongly typed: each value is computed in the type that the graph gives it.

    Raises:
        BuildError: TensorRT refuses the graph, or cannot build it here.
    """
    trt_logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(trt_logger)
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly_typed)
    parser = trt.OnnxParser(network, trt_logger)
    if not parser.parse_from_file(str(onnx_file)):
        complaints = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise BuildError(f"{onnx_file}: {trt.__name__} {trt.__version__} refuses it: {complaints}")
    plan = builder.build_serialized_network(network, _config(trt, builder, network, tile_counts))
    if plan is None:
        raise BuildError(
            f"{onnx_file}: {trt.__name__} {trt.__version__} built no plan; its messages are above"
        )
    return memoryview(plan)


def _config(trt: ModuleType, builder: Any, network: Any, tile_counts: TileCounts) -> Any:
    tiles = network.get_input(0)
    profile = builder.create_optimization_profile()
    profile.set_shape(tiles.name, *((count, *tiles.shape[1:]) for count in tile_counts))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    config.progress_monitor = _progress_monitor(trt)
    return config


def _progress_monitor(trt: ModuleType) -> Any:
    """Returns a monitor that logs where the build is, every few seconds."""

    class ProgressLog(trt.IProgressMonitor):  # type: ignore[misc,name-defined] # known at run time
        def __init__(self) -> None:
            super().__init__()
            self._step_counts: dict[str, int] = {}
            self._logged_at = time.monotonic()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._step_counts[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if time.monotonic() - self._logged_at >= SECONDS_BETWEEN_EVENTS:
                self._logged_at = time.monotonic()
                count = self._step_counts[phase_name]
                logger.info("building_plan", phase=phase_name, step=step + 1, of=count)
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            pass

    return ProgressLog()
