"""The usage log: who used what, a JSON line for each request."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from gateway.access.appended_file import AppendedFile
from gateway.pools import Pool
from gateway.tasks import owning
from protos.process.reload import on_reload

logger = structlog.get_logger()

# Some 5 MB of lines that the disk does not take.
MAX_WAITING_LINE_COUNT = 10_000
RETRY_SECONDS = 1.0
# How long the end of an answer waits for its line. A disk that takes longer holds nobody up.
PATIENCE_SECONDS = 1.0
# How long the end of the process waits for the last lines.
FLUSH_SECONDS = 5.0


@dataclass(frozen=True)
class _Line:
    entry: Mapping[str, Any]
    data: bytes
    written: asyncio.Future[None]


class UsageLog:
    """Lines on their way to a file, in their order, written by a thread.

    While the file cannot be written they wait, up to MAX_WAITING_LINE_COUNT of them. One that finds
    no room, or that the process cannot wait for at its end, goes into the process's own log, as
    `usage_line_not_written`: no request fails for it.
    """

    def __init__(self, path: Path, on_failure: Callable[[], None]) -> None:
        """`on_failure` is told of each write that fails."""
        self._path = path
        self._on_failure = on_failure
        self._file = AppendedFile(path)
        self._pool = Pool("usage", 1)
        self._waiting: deque[_Line] = deque()
        self._woken = asyncio.Event()
        self._is_failing = False

    def add(self, entry: Mapping[str, Any]) -> asyncio.Future[None]:
        """Has a line written; returns what is done when it is in the file, or in the log."""
        data = json.dumps(entry).encode() + b"\n"
        line = _Line(entry, data, asyncio.get_running_loop().create_future())
        if len(self._waiting) < MAX_WAITING_LINE_COUNT:
            self._waiting.append(line)
            self._woken.set()
        else:
            _give_up(line)
        return line.written

    async def written(self, line: asyncio.Future[None]) -> None:
        """Waits for a line, unless the disk makes it wait for long."""
        if not self._is_failing:
            await asyncio.wait((line,), timeout=PATIENCE_SECONDS)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Writes what is added within the block; on leaving it, what is left.

        Raises:
            OSError: the file cannot be opened.
        """
        with closing(self._pool):
            try:
                await self._pool.run(self._file.append, [])
            except OSError as error:
                raise OSError(
                    f"cannot write the usage log {self._path}: {error.strerror}"
                ) from error
            async with owning(asyncio.create_task(self._write())):
                with on_reload(self._woken.set):
                    yield
                if self._waiting:
                    await asyncio.wait((self._waiting[-1].written,), timeout=FLUSH_SECONDS)
            if not self._waiting:  # else the thread may be at it
                self._file.close()
            for line in self._waiting:
                _give_up(line)

    async def _write(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            await self._write_waiting()

    async def _write_waiting(self) -> None:
        """Writes what waits, and once even if nothing does: the file may have to be made anew."""
        while True:
            try:
                count = await self._pool.run(
                    self._file.append, [line.data for line in self._waiting]
                )
            except OSError as error:
                self._note_failure(error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._note_success()
            for _ in range(count):
                _settle(self._waiting.popleft())
            if not self._waiting:
                return

    def _note_failure(self, error: OSError) -> None:
        self._on_failure()
        if not self._is_failing:
            logger.error("usage_log_failed", file=str(self._path), error=error.strerror)
        self._is_failing = True

    def _note_success(self) -> None:
        if self._is_failing:
            logger.warning("usage_log_recovered", waiting_line_count=len(self._waiting))
        self._is_failing = False


def _settle(line: _Line) -> None:
    if not line.written.done():
        line.written.set_result(None)


def _give_up(line: _Line) -> None:
    logger.error("usage_line_not_written", **line.entry)
    _settle(line)
