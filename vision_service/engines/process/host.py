"""The engine's side of the link: a part of `protos.process.engine_host`."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import msgspec
import structlog
import torch

from protos.checkpoint.section import CheckpointError
from protos.process.engine_link import EngineLink, Frame
from protos.process.memory import is_out_of_memory
from protos.process.memory_file import MemoryFile
from protos.process.settings import built
from vision_service.checkpoint import VisionConfig
from vision_service.decoding.shared import FILE_NAME
from vision_service.engines.base import (
    EncodingBatch,
    EngineStartError,
    InPlaceEngine,
    VisionEngine,
    dtype_name,
)
from vision_service.engines.create import create_engine
from vision_service.engines.process.messages import (
    Encode,
    Encoded,
    Facts,
    Memory,
    Refused,
    SlotLayout,
)
from vision_service.engines.process.slots import SlotMemory, byte_count
from vision_service.settings import Settings

START_ERRORS = (CheckpointError, EngineStartError, OSError)
logger = structlog.get_logger()


def start(settings: bytes, descriptors: tuple[int, ...]) -> HostedVisionEngine:
    """Loads the engine of a vision service's settings; raises START_ERRORS, and MemoryError."""
    for number in descriptors:  # none is meant for us
        os.close(number)
    options = built(Settings, json.loads(settings))
    config = VisionConfig.from_checkpoint(options.checkpoint)
    engine = create_engine(options, config)
    layout = SlotLayout(
        options.max_batch_tile_count,
        config.tile_size,
        config.tokens_per_tile,
        config.output_size,
        dtype_name(engine.dtype),
    )
    return HostedVisionEngine(engine, layout)


class HostedVisionEngine:
    """A HostedEngine: one thread gives the engine batches, another one waits for them.

    So the next batch is submitted while the first one is waited for.
    """

    def __init__(self, engine: VisionEngine, layout: SlotLayout) -> None:
        """Makes the memory of both, page-locked where this process uses a GPU."""
        self._engine = engine
        self._file = MemoryFile(FILE_NAME, byte_count(layout))
        memory = SlotMemory(self._file.number, layout)
        _page_lock(memory.whole)
        self._slots = memory.slots
        self.facts = Facts(engine.weights_sha256, layout)
        self._submitting = ThreadPoolExecutor(1, "vision-submit")
        self._waiting = ThreadPoolExecutor(1, "vision-wait")
        self._has_died = False
        self._decoder = msgspec.msgpack.Decoder(Encode)

    def begin(self, link: EngineLink) -> None:
        self._link = link
        link.send(Memory(), [self._file.number])

    def receive(self, frame: Frame) -> None:
        message = self._decoder.decode(frame.data)
        self._submitting.submit(self._guarded, message, self._submit)

    def poll(self) -> bool:
        return not self._has_died

    async def close(self) -> None:
        for pool in (self._submitting, self._waiting):
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)

    # What follows runs on the two threads.

    def _guarded(self, message: Encode, work: Callable[..., None], *arguments: Any) -> None:
        """Works on a batch; what there is no memory for is refused, all else ends the engine."""
        try:
            work(message, *arguments)
        except Exception as error:  # whatever it is, it is in the log
            if is_out_of_memory(error):
                self._link.send(Refused(message.slot, str(error)))
                return
            logger.error("engine_died", error=str(error), exc_info=error)
            self._has_died = True

    def _submit(self, message: Encode) -> None:
        slot, count = self._slots[message.slot], sum(message.tile_counts)
        tiles, rows = slot.tiles[:count], slot.rows[:count]
        if isinstance(self._engine, InPlaceEngine):
            batch = self._engine.submit_in_place(tiles, message.tile_counts, rows)
        else:
            batch = self._engine.submit(torch.split(tiles, message.tile_counts))
        self._waiting.submit(self._guarded, message, self._finish, batch, rows)

    def _finish(self, message: Encode, batch: EncodingBatch, rows: torch.Tensor) -> None:
        embeddings = batch.wait()
        if embeddings[0].data_ptr() != rows.data_ptr():
            torch.cat(embeddings, out=rows)
        self._link.send(Encoded(message.slot, batch.padding_tile_count, batch.are_finite()))


def _page_lock(memory: torch.Tensor) -> None:
    """Lets the GPU read and write the memory by itself; without it copies keep threads waiting."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # PyTorch's
        return
    status = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)  # type: ignore[no-untyped-call]
    if int(status):
        logger.warning("slots_not_page_locked", byte_count=memory.nbytes, status=int(status))
        with suppress(RuntimeError):  # or the next kernel of this thread would raise the error
            torch.ones(1, device="cuda")
