"""Files that are read anew when they change: keys and certificates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

POLL_SECONDS = 1.0
State = tuple[tuple[int, int, int] | None, ...]


def state_of(paths: Sequence[Path]) -> State:
    """Returns what changes when one of the files does, also behind a link that is set anew."""
    return tuple(map(_state, paths))


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


@asynccontextmanager
async def watching(
    paths: Sequence[Path], reread: Callable[[], None], poll_seconds: float = POLL_SECONDS
) -> AsyncIterator[None]:
    """Calls `reread` soon after one of the files has changed, for as long as the block runs.

    Files that belong together, as a certificate and its key, may change one after the other: it is
    called once more after each, and has to keep what it had where they do not fit. What is read
    within the block is never older than what is known here.
    """
    known = await asyncio.to_thread(state_of, paths)
    task = asyncio.create_task(_watch(paths, known, reread, poll_seconds))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _watch(
    paths: Sequence[Path], known: State, reread: Callable[[], None], poll_seconds: float
) -> None:
    while True:
        await asyncio.sleep(poll_seconds)
        if (now := await asyncio.to_thread(state_of, paths)) != known:
            known = now
            reread()
