"""A strict double of TensorRT's runtime: the calls that the engine makes, and no others.

Names and parameters are TensorRT's (a test holds them against TensorRT-RTX's). What TensorRT
answers with False or None it does too; what TensorRT leaves undefined, such as a run on addresses
of an earlier one, it raises as AssertionError. A run computes with the checkpoint's VisionModel, on
the memory at the addresses.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vision_service.checkpoint import VisionConfig
from vision_service.engines.base import DTYPES
from vision_service.engines.torch.engine import TorchEngine, load_model

__version__ = "10.14.1.48"

Shape = tuple[int, ...]

# Tiles of each run, by any context, since a test last cleared it.
runs: list[int] = []


def plan_of(
    checkpoint: Path, dtype: str, tile_counts: tuple[int, int, int], device: str = "cpu"
) -> bytes:
    """Returns a plan that the double can load."""
    content = {
        "checkpoint": str(checkpoint),
        "dtype": dtype,
        "tile_counts": tile_counts,
        "device": device,
    }
    return json.dumps(content).encode()


class Logger:
    """Takes messages from WARNING on."""

    WARNING = 2

    def __init__(self, min_severity: int = WARNING) -> None:
        assert min_severity == self.WARNING


class Runtime:
    """Loads plans."""

    def __init__(self, logger: Logger) -> None:
        assert isinstance(logger, Logger)

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        """Returns None for what is no plan."""
        try:
            content = json.loads(serialized_engine)
        except ValueError:
            return None
        return ICudaEngine(content)


class ICudaEngine:
    """A loaded plan with one profile."""

    def __init__(self, content: dict[str, Any]) -> None:
        checkpoint, dtype = Path(content["checkpoint"]), DTYPES[content["dtype"]]
        self.device = torch.device(content["device"])
        self.config = VisionConfig.from_checkpoint(checkpoint)
        model, digest = load_model(checkpoint, self.config, self.device, dtype)
        self.model = TorchEngine(model, self.config, digest)
        self._tile_counts = content["tile_counts"]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Shape]:
        """Returns the smallest, best and largest shape of an input."""
        assert (name, profile_index) == ("tiles", 0)
        edge = self.config.tile_size
        return [(count, 3, edge, edge) for count in self._tile_counts]

    def create_execution_context(self) -> IExecutionContext:
        """Returns a context of its own."""
        return IExecutionContext(self)


class IExecutionContext:
    """Runs the plan; shape and addresses hold for one run."""

    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._shape: Shape | None = None
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        """False: there is no such input, or the profile does not allow the shape."""
        if name != "tiles":
            return False
        assert all(type(size) is int for size in shape)
        smallest, _, largest = self._engine.get_tensor_profile_shape(name, 0)
        if len(shape) != len(smallest):
            return False
        self._shape = tuple(shape)
        bounds = zip(smallest, self._shape, largest, strict=True)
        return all(low <= size <= high for low, size, high in bounds)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """False: there is no such input or output."""
        assert type(memory) is int
        assert memory
        self._addresses[name] = memory
        return name in ("tiles", "embeddings")

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Computes on the stream; on CUDA not on the default one, on which TensorRT is slow."""
        assert bool(stream_handle) == (self._engine.device.type == "cuda")
        assert self._shape is not None
        assert self._addresses.keys() == {"tiles", "embeddings"}
        runs.append(self._shape[0])
        if stream_handle:
            stream: Any = torch.cuda.ExternalStream(stream_handle)  # type: ignore[no-untyped-call] # torch leaves it untyped
            with torch.cuda.stream(stream):
                self._compute(self._shape)
        else:
            self._compute(self._shape)
        self._shape, self._addresses = None, {}
        return True

    def _compute(self, shape: Shape) -> None:
        engine = self._engine
        tiles = _at(self._addresses["tiles"], shape, torch.uint8, engine.device)
        row_shape = (engine.config.tokens_per_tile, engine.config.output_size)
        rows = _at(
            self._addresses["embeddings"],
            (shape[0], *row_shape),
            engine.model.dtype,
            engine.device,
        )
        rows.copy_(engine.model.encode(tiles))


def _at(address: int, shape: Shape, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Returns the memory as a tensor."""
    byte_count = torch.Size(shape).numel() * dtype.itemsize
    if device.type == "cuda":
        whole = torch.as_tensor(_CudaMemory(address, byte_count), device=device)
    else:
        whole = torch.frombuffer(
            (ctypes.c_uint8 * byte_count).from_address(address), dtype=torch.uint8
        )
    return whole.view(dtype).view(shape)


class _CudaMemory:
    """Memory on the device, as CUDA libraries hand it to each other."""

    def __init__(self, address: int, byte_count: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (byte_count,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }
