"""The CUDA engine: batches of tiles through streams, and through one CUDA graph for each size."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import structlog
import torch

from vision_service.checkpoint import VisionConfig
from vision_service.engines.base import tile_sums
from vision_service.engines.device_batch import DeviceBatch

SLOT_COUNT = 2
logger = structlog.get_logger()

Model = Callable[[torch.Tensor], torch.Tensor]


class CudaEngine:
    """A VisionEngine that runs a model under CUDA graphs, two batches at a time.

    There are three streams: while one batch is computed, the next batch's tiles are uploaded and
    the last one's embeddings downloaded, between page-locked host memory and one of two slots on
    the device. The host waits only for a free slot and, in `DeviceBatch.wait`, for the embeddings.

    Attributes:
        dtype: element type of the weights and the embeddings.
        weights_sha256: digest of the tensors as the checkpoint stores them.
    """

    def __init__(
        self,
        model: Model,
        config: VisionConfig,
        weights_sha256: bytes,
        *,
        dtype: torch.dtype,
        max_batch_tile_count: int,
    ) -> None:
        """Captures the graphs, which is the warm forward pass too.

        Raises:
            torch.OutOfMemoryError: the largest batch does not fit into the device's memory.
        """
        self.dtype = dtype
        self.weights_sha256 = weights_sha256
        self._upload, self._compute, self._download = _new_stream(), _new_stream(), _new_stream()
        tile_shape = (3, config.tile_size, config.tile_size)
        self._graphs = _Graphs(model, tile_shape, max_batch_tile_count, self._compute)
        row_shape = (config.tokens_per_tile, config.output_size)
        self._slots = itertools.cycle(
            [
                _Slot.empty(max_batch_tile_count, tile_shape, row_shape, dtype)
                for _ in range(SLOT_COUNT)
            ]
        )

    def encode(self, tiles: torch.Tensor) -> torch.Tensor:
        """Splits batches that are larger than the largest graph."""
        parts = torch.split(tiles, self._graphs.max_tile_count)
        return torch.cat([self.submit([part]).wait()[0] for part in parts])

    @torch.inference_mode()
    def submit(self, images: Sequence[torch.Tensor]) -> DeviceBatch:
        """Takes a batch of at most max_batch_tile_count tiles."""
        slot = self._free_slot()
        counts = [len(tiles) for tiles in images]
        host_tiles = slot.host_tiles[: sum(counts)]
        torch.cat(list(images), out=host_tiles)
        # PyTorch keeps this page-locked memory for later batches.
        shape, dtype = slot.rows.shape[1:], self.dtype
        embeddings = [torch.empty(n, *shape, dtype=dtype, pin_memory=True) for n in counts]
        return self._launch(slot, host_tiles, embeddings)

    @torch.inference_mode()
    def submit_in_place(
        self, tiles: torch.Tensor, tile_counts: Sequence[int], rows: torch.Tensor
    ) -> DeviceBatch:
        """Takes a batch of at most max_batch_tile_count tiles."""
        return self._launch(self._free_slot(), tiles, torch.split(rows, list(tile_counts)))

    def is_alive(self) -> bool:
        return True

    def close(self) -> None:
        pass

    def _free_slot(self) -> _Slot:
        slot = next(self._slots)
        slot.free.synchronize()
        return slot

    def _launch(
        self, slot: _Slot, host_tiles: torch.Tensor, embeddings: Sequence[torch.Tensor]
    ) -> DeviceBatch:
        tile_count = len(host_tiles)
        with torch.cuda.stream(self._upload):
            slot.tiles[:tile_count].copy_(host_tiles, non_blocking=True)
        self._compute.wait_stream(self._upload)
        with torch.cuda.stream(self._compute):
            padding = self._graphs.run(slot.tiles, tile_count, slot.rows)
            slot.sums[:tile_count] = tile_sums(slot.rows[:tile_count])
        self._download.wait_stream(self._compute)
        with torch.cuda.stream(self._download):
            parts = torch.split(slot.rows[:tile_count], list(map(len, embeddings)))
            for part, embedding in zip(parts, embeddings, strict=True):
                embedding.copy_(part, non_blocking=True)
            sums = torch.empty(tile_count, dtype=torch.float32, pin_memory=True)
            sums.copy_(slot.sums[:tile_count], non_blocking=True)
            slot.free.record()
        return DeviceBatch(list(embeddings), padding, sums, slot.free)


@dataclass(frozen=True)
class _Slot:
    """The buffers of one batch in flight; `free` comes once its embeddings are downloaded."""

    host_tiles: torch.Tensor  # [max tiles, 3, S, S] uint8, page-locked
    tiles: torch.Tensor  # the same on the device
    rows: torch.Tensor  # [max tiles, tokens_per_tile, hidden]
    sums: torch.Tensor  # [max tiles] float32, see tile_sums
    free: torch.cuda.Event

    @classmethod
    def empty(
        cls,
        tile_count: int,
        tile_shape: tuple[int, ...],
        row_shape: tuple[int, ...],
        dtype: torch.dtype,
    ) -> _Slot:
        return cls(
            torch.zeros(tile_count, *tile_shape, dtype=torch.uint8, pin_memory=True),
            torch.zeros(tile_count, *tile_shape, dtype=torch.uint8, device="cuda"),
            torch.empty(tile_count, *row_shape, dtype=dtype, device="cuda"),
            torch.empty(tile_count, dtype=torch.float32, device="cuda"),
            torch.cuda.Event(blocking=True),  # type: ignore[no-untyped-call] # torch leaves it untyped
        )


def _new_stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call] # torch leaves it untyped


class _Graphs:
    """The model, captured for each of some tile counts; their activations share one memory."""

    def __init__(
        self, model: Model, tile_shape: tuple[int, ...], max_count: int, stream: torch.cuda.Stream
    ) -> None:
        self.max_tile_count = max_count
        # A graph reads the weights from where they were, and does not keep them there.
        self._model = model
        self._tiles = torch.zeros(max_count, *tile_shape, dtype=torch.uint8, device="cuda")
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._rows: dict[int, torch.Tensor] = {}
        self._pool = torch.cuda.graph_pool_handle()
        torch.cuda.synchronize()  # the weights are there, whichever stream brought them
        # The largest first: what it needs is enough for the others.
        for count in reversed(graph_tile_counts(max_count)):
            self._capture(count, stream)

    def run(self, tiles: torch.Tensor, tile_count: int, rows: torch.Tensor) -> int:
        """Encodes the first tiles into the first rows, on the current stream.

        Returns:
            How many more tiles were computed, to fill the graph.
        """
        count = min(count for count in self._graphs if count >= tile_count)
        self._tiles[:tile_count].copy_(tiles[:tile_count])
        self._graphs[count].replay()
        rows[:tile_count].copy_(self._rows[count][:tile_count])
        return count - tile_count

    def _capture(self, count: int, stream: torch.cuda.Stream) -> None:
        logger.info("capturing_graph", tile_count=count)
        tiles = self._tiles[:count]
        with torch.cuda.stream(stream):
            self._model(tiles)  # compiles kernels and makes handles, which a capture must not do
        graph = torch.cuda.CUDAGraph()
        # By itself a recording forbids calls that other threads may make, for another engine.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
        ):
            self._rows[count] = self._model(tiles)
        self._graphs[count] = graph


def graph_tile_counts(max_count: int) -> list[int]:
    """Returns the sizes of graphs, ascending: halves of the largest, and three quarters of these.

    So at most a third of a graph's tiles is padding: for 26, they are 1, 2, 3, 4, 6, 7, 10, 13, 20
    and 26.
    """
    return sorted(set(_halves(max_count)))


def _halves(count: int) -> Iterator[int]:
    while count > 1:
        yield count
        yield -(-3 * count // 4)
        count = -(-count // 2)
    yield 1
