"""The TensorRT engine: a plan that `internvl-vision-build` made, on a CUDA stream."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from vision_service.checkpoint import (
    TensorDigest,
    VisionConfig,
    vision_tensor_files,
    vision_tensors,
)
from vision_service.engines.base import (
    DTYPES,
    EngineStartError,
    not_finite,
    tile_sums,
)
from vision_service.engines.device_batch import DeviceBatch
from vision_service.engines.first_run import first_embeddings
from vision_service.engines.tensorrt.record import INPUT, OUTPUT, PLAN_FILE, Gpu, PlanRecord
from vision_service.recipe import plan_recipe_sha256


def start_engine(
    folder: Path, checkpoint: Path, config: VisionConfig, device: torch.device
) -> TensorrtEngine:
    """Loads a plan and encodes as many tiles as one run may have.

    Args:
        folder: what `internvl-vision-build` wrote.
        checkpoint: the one that is served; the plan must hold its weights.
        config: of the checkpoint.
        device: a CUDA device; on the CPU only the tests' double of TensorRT runs.

    Raises:
        CheckpointError: the checkpoint's tensors cannot be read.
        EngineStartError: the plan is damaged, was not built from this checkpoint, or not for this
            TensorRT and GPU; or its first run fails, or gives embeddings that are not finite.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EngineStartError("engine is tensorrt, but PyTorch finds no CUDA device")
    record = PlanRecord.read(folder)
    trt = _import_library(record)
    _check_gpu(record)
    weights_sha256 = _digest(checkpoint)
    _check_origin(record, config, weights_sha256)
    context = _load_plan(trt, record, config, folder / PLAN_FILE)
    plan = Plan(context, record, (config.tokens_per_tile, config.output_size))
    engine = TensorrtEngine(plan, weights_sha256, device)
    _warm(engine, config.tile_size, record.tile_counts.max)
    return engine


class TensorrtEngine:
    """A VisionEngine that runs a plan.

    A batch's upload, runs and download follow each other on one stream. The host waits only for the
    embeddings, in `DeviceBatch.wait`, so a batch that is submitted meanwhile follows at once.

    Attributes:
        dtype: element type of the plan's embeddings.
        weights_sha256: digest of the tensors as the checkpoint stores them.
    """

    def __init__(self, plan: Plan, weights_sha256: bytes, device: torch.device) -> None:
        self.dtype = plan.dtype
        self.weights_sha256 = weights_sha256
        self._plan = plan
        self._device = device
        self._stream = _Stream(device)

    def encode(self, tiles: torch.Tensor) -> torch.Tensor:
        return self.submit([tiles]).wait()[0]

    @torch.inference_mode()
    def submit(self, images: Sequence[torch.Tensor]) -> DeviceBatch:
        """Splits a batch with more tiles than the profile has."""
        counts = [len(tiles) for tiles in images]
        host_tiles = self._stream.host_memory(sum(counts), *images[0].shape[1:], dtype=torch.uint8)
        torch.cat(list(images), out=host_tiles)
        with self._stream.active():
            tiles = host_tiles.to(self._device, non_blocking=True)
            runs = [self._run(part) for part in torch.split(tiles, self._plan.tile_counts.max)]
            rows = torch.cat([rows for rows, _ in runs])
            embeddings = [self._to_host(part) for part in torch.split(rows, counts)]
            sums = self._to_host(tile_sums(rows))
            downloaded = self._stream.event()
        return DeviceBatch(embeddings, sum(padding for _, padding in runs), sums, downloaded)

    def is_alive(self) -> bool:
        return True

    def close(self) -> None:
        pass

    def _run(self, tiles: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Returns the tiles' rows, and how many tiles were added to make the profile's least."""
        count = len(tiles)
        padding = max(0, self._plan.tile_counts.min - count)
        if padding:
            tiles = torch.cat([tiles, tiles.new_zeros(padding, *tiles.shape[1:])])
        return self._plan.run(tiles, self._stream.handle)[:count], padding

    def _to_host(self, rows: torch.Tensor) -> torch.Tensor:
        host_rows = self._stream.host_memory(*rows.shape, dtype=rows.dtype)
        return host_rows.copy_(rows, non_blocking=True)


class _Stream:
    """A CUDA stream; on the CPU, where only the tests' double runs, the caller's thread."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._module: Any = torch.get_device_module(device)
        self._stream = self._module.Stream()

    @property
    def handle(self) -> int:
        """The cudaStream_t."""
        return int(self._stream.cuda_stream) if self._is_cuda else 0

    def active(self) -> AbstractContextManager[None]:
        """Returns a context in which tensors and copies belong to the stream."""
        context: AbstractContextManager[None] = self._module.stream(self._stream)
        return context

    def event(self) -> Any:
        """Returns an event behind all that the active stream has."""
        event = self._module.Event(blocking=True) if self._is_cuda else self._module.Event()
        event.record()
        return event

    def host_memory(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """Returns page-locked memory: copies from and to it do not keep the host waiting."""
        return torch.empty(shape, dtype=dtype, pin_memory=self._is_cuda)


class Plan:
    """A loaded plan with the one context that runs it."""

    def __init__(self, context: Any, record: PlanRecord, row_shape: tuple[int, int]) -> None:
        self.tile_counts = record.tile_counts
        self.dtype = DTYPES[record.dtype]
        self._context = context
        self._row_shape = row_shape

    def run(self, tiles: torch.Tensor, stream_handle: int) -> torch.Tensor:
        """Puts a run on a stream.

        Args:
            tiles: [n, 3, S, S] uint8 on the device, contiguous; n within the profile.
            stream_handle: the cudaStream_t that the tensors belong to.

        Returns:
            [n, tokens_per_tile, hidden], not yet computed.
        """
        rows = tiles.new_empty(len(tiles), *self._row_shape, dtype=self.dtype)
        accepted = (
            self._context.set_input_shape(INPUT, tuple(tiles.shape))
            and self._context.set_tensor_address(INPUT, tiles.data_ptr())
            and self._context.set_tensor_address(OUTPUT, rows.data_ptr())
            and self._context.execute_async_v3(stream_handle)
        )
        if not accepted:
            raise RuntimeError(
                f"TensorRT refused a run of {len(tiles)} tiles; its messages say why"
            )
        return rows


def _import_library(record: PlanRecord) -> ModuleType:
    try:
        trt = importlib.import_module(record.library)
    except (ImportError, OSError) as error:
        raise EngineStartError(
            f"the plan was built with {record.library}, which cannot be imported here ({error})"
        ) from error
    _require("version of " + record.library, record.library_version, trt.__version__)
    return trt


def _digest(checkpoint: Path) -> bytes:
    digest = TensorDigest()
    for name, tensor in vision_tensors(vision_tensor_files(checkpoint)):
        digest.add(name, tensor)
    return digest.digest()


def _check_gpu(record: PlanRecord) -> None:
    if record.gpu is not None:
        present = Gpu.present()
        found = present.compute_capability if present else "none"
        _require("compute capability", record.gpu.compute_capability, found)


def _check_origin(record: PlanRecord, config: VisionConfig, weights_sha256: bytes) -> None:
    _require("digest of the checkpoint's weights", record.weights_sha256, weights_sha256.hex())
    recipe = plan_recipe_sha256(config, weights_sha256, DTYPES[record.dtype])
    _require("recipe (config.json, Pillow's version)", record.recipe_sha256, recipe.hex())


def _load_plan(trt: ModuleType, record: PlanRecord, config: VisionConfig, file: Path) -> Any:
    """Returns the execution context of the plan in the file."""
    plan = _read(file)
    _require("digest of the plan", record.plan_sha256, hashlib.sha256(plan).hexdigest())
    engine = trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(plan)
    context = engine and engine.create_execution_context()
    if context is None:
        raise EngineStartError(
            f"{file}: TensorRT cannot load it, and its messages say why: the memory of the "
            "device may be too small"
        )
    tile_shape = (3, config.tile_size, config.tile_size)
    expected = [(count, *tile_shape) for count in record.tile_counts]
    shapes = [tuple(shape) for shape in engine.get_tensor_profile_shape(INPUT, 0)]
    _require("profile", expected, shapes)
    return context


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise EngineStartError(f"{file}: cannot be read: {error}") from error


def _warm(engine: TensorrtEngine, tile_size: int, tile_count: int) -> None:
    try:
        embeddings = first_embeddings(engine, tile_size, max(2, tile_count))
    except RuntimeError as error:  # TensorRT refuses the run, or the memory is too small
        raise EngineStartError(f"the plan's first run failed: {error}") from error
    if not embeddings.isfinite().all():
        remedy = "build the plan with --dtype bfloat16 or float32"
        raise EngineStartError(not_finite("the plan's embeddings are", engine.dtype, remedy))


def _require(what: str, recorded: object, found: object) -> None:
    if recorded != found:
        raise EngineStartError(
            f"the plan was built for the {what} {recorded}, but here it is {found}; "
            "build it again with internvl-vision-build"
        )
