"""A VisionEngine that another process runs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from itertools import cycle

import msgspec
import structlog
import torch

from protos.errors import EngineDeadError
from protos.process.engine_link import (
    EngineLink,
    HostFailedError,
    Start,
    await_host_end,
    await_ready,
    open_link,
)
from protos.process.supervisor import supervisor
from vision_service.engines.base import DTYPES, EngineStartError
from vision_service.engines.process.messages import (
    Encode,
    Encoded,
    Facts,
    Memory,
    Refused,
    Reply,
)
from vision_service.engines.process.slots import SLOT_COUNT, SlotMemory
from vision_service.settings import Settings

logger = structlog.get_logger()

PART = "vision_service.engines.process.host"


def start_engine(settings: Settings) -> ProcessEngine:
    """Has a process load the engine that the settings name, and waits until it is warm.

    Raises:
        EngineStartError: the process or its engine cannot start; its own sentence.
    """
    try:
        link, process = open_link(settings.engine_process, PART)
    except OSError as error:
        place = settings.engine_process
        raise EngineStartError(f"engine_process is {place}, but: {error}") from error
    logger.info("engine_process", pid=None if process is None else process.pid)
    try:
        return _engine(settings, link, process)
    except BaseException as error:
        _hang_up(link, process)
        if isinstance(error, HostFailedError):
            raise EngineStartError(str(error)) from error
        raise


def _engine(
    settings: Settings, link: EngineLink, process: subprocess.Popen[bytes] | None
) -> ProcessEngine:
    start = Start.of(PART, settings)
    facts = msgspec.msgpack.decode(
        await_ready(link, start, on_loading=supervisor().works), type=Facts
    )
    if (frame := link.receive()) is None:
        raise HostFailedError("the process of the vision engine ended before it served")
    msgspec.msgpack.decode(frame.data, type=Memory)
    (number,) = frame.descriptors
    try:
        return ProcessEngine(link, facts, SlotMemory(number, facts.layout), process)
    finally:
        os.close(number)


def _hang_up(link: EngineLink, process: subprocess.Popen[bytes] | None) -> None:
    link.close()
    if process is not None:
        await_host_end(process)


class ProcessEngine:
    """A VisionEngine at the other end of a link.

    Batches are copied into one of two slots, and their embeddings out of it. The second copy is
    made when they are waited for, while the engine has the other slot's batch.

    Attributes:
        dtype: element type of the embeddings.
        weights_sha256: digest of the tensors as the checkpoint stores them.
    """

    def __init__(
        self,
        link: EngineLink,
        facts: Facts,
        memory: SlotMemory,
        process: subprocess.Popen[bytes] | None = None,
    ) -> None:
        """Takes a link whose host is ready, and the host's process if that is its own."""
        self.dtype = DTYPES[facts.layout.dtype]
        self.weights_sha256 = facts.weights_sha256
        self._max_tile_count = facts.layout.max_tile_count
        self._link = link
        self._slots = memory.slots
        self._process = process
        self._batches: dict[int, ProcessBatch] = {}  # the latest of each slot
        self._next_slots = cycle(range(SLOT_COUNT))
        self._decoder = msgspec.msgpack.Decoder(Reply)

    def encode(self, tiles: torch.Tensor) -> torch.Tensor:
        """Splits batches that are larger than a slot."""
        parts = torch.split(tiles, self._max_tile_count)
        return torch.cat([self.submit([part]).wait()[0] for part in parts])

    def submit(self, images: Sequence[torch.Tensor]) -> ProcessBatch:
        """Takes a batch of at most max_batch_tile_count tiles."""
        slot = next(self._next_slots)
        if (before := self._batches.get(slot)) is not None:
            with suppress(MemoryError):  # whoever waits for that batch is told
                before.wait()
        tile_counts = [len(tiles) for tiles in images]
        torch.cat(list(images), out=self._slots[slot].tiles[: sum(tile_counts)])
        self._batches[slot] = batch = ProcessBatch(self, slot, tile_counts)
        self._link.send(Encode(slot, tile_counts))
        return batch

    def is_alive(self) -> bool:
        return self._link.is_open()

    def close(self) -> None:
        """Hangs up, with which a host ends; waits for that if it is this engine's own."""
        _hang_up(self._link, self._process)

    def take_replies(self, seconds: float | None) -> None:
        """Hands the replies that have come to their batches; waits so long for the first one.

        Args:
            seconds: None: until it comes.

        Raises:
            EngineDeadError: there will be none any more.
        """
        if (frame := self._link.receive(seconds)) is not None:
            reply = self._decoder.decode(frame.data)
            self._batches[reply.slot].reply = reply
        elif seconds is None:
            raise EngineDeadError("the process of the vision engine has ended")

    def embeddings(self, batch: ProcessBatch) -> list[torch.Tensor]:
        """Returns copies of what a slot has of a batch."""
        del self._batches[batch.slot]  # which would keep them until the slot's next one
        rows = self._slots[batch.slot].rows[: sum(batch.tile_counts)]
        return [part.clone() for part in torch.split(rows, batch.tile_counts)]


class ProcessBatch:
    """An EncodingBatch that another process has.

    Attributes:
        slot: where it is.
        tile_counts: of its images.
        reply: the host's, once it has come.
    """

    def __init__(self, engine: ProcessEngine, slot: int, tile_counts: list[int]) -> None:
        self.slot = slot
        self.tile_counts = tile_counts
        self.reply: Encoded | Refused | None = None
        self._engine = engine
        self._embeddings: list[torch.Tensor] | None = None

    @property
    def padding_tile_count(self) -> int:
        return self._encoded().padding_tile_count

    def is_ready(self) -> bool:
        if self.reply is None:
            self._engine.take_replies(0.0)
        return self.reply is not None

    def wait(self) -> list[torch.Tensor]:
        """Raises MemoryError if there was no memory for it."""
        self._encoded()
        if self._embeddings is None:
            self._embeddings = self._engine.embeddings(self)
        return self._embeddings

    def are_finite(self) -> list[bool]:
        return self._encoded().are_finite

    def _encoded(self) -> Encoded:
        while self.reply is None:
            self._engine.take_replies(None)
        if isinstance(self.reply, Refused):
            raise MemoryError(self.reply.sentence)
        return self.reply
