"""Keys that are read anew when their file changes, and on SIGHUP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import structlog

from gateway.access.key_file import KeyFileError
from gateway.access.key_source import KeySource
from gateway.access.keyring import Key, KeyRing
from gateway.pools import Pool
from gateway.tasks import owning
from protos.process.reload import on_reload
from protos.process.watched_files import watching

logger = structlog.get_logger()


@asynccontextmanager
async def open_key_ring(
    source: KeySource, files: Pool, note_refused: Callable[[bool], None]
) -> AsyncIterator[KeyRing]:
    """Yields the keys of a source; what its file holds later is put on the ring within the block.

    While the file cannot be used, the ring keeps the keys that it has.

    Args:
        source: where the keys are.
        files: its threads read them.
        note_refused: is told of each reading after the first whether the file was refused.

    Raises:
        KeyFileError: the file cannot be used from the start.
    """
    ring = KeyRing(await files.run(_read, source))
    if source.path is None:
        yield ring
        return
    changed = asyncio.Event()
    read = partial(files.run, _read, source)
    task = asyncio.create_task(_keep_current(ring, read, changed, note_refused))
    with on_reload(changed.set):
        async with watching([source.path], changed.set), owning(task):
            yield ring


def _read(source: KeySource) -> Sequence[Key]:
    keys = source.read()
    source.warn_of_readers()
    return keys


async def _keep_current(
    ring: KeyRing,
    read: Callable[[], Awaitable[Sequence[Key]]],
    changed: asyncio.Event,
    note_refused: Callable[[bool], None],
) -> None:
    while await changed.wait():
        changed.clear()
        try:
            keys = await read()
        except KeyFileError as error:
            logger.error("api_keys_refused", error=str(error))
            note_refused(True)
        else:
            _put(keys, ring)
            note_refused(False)


def _put(keys: Sequence[Key], ring: KeyRing) -> None:
    before = {key.caller.name: key for key in ring.keys}
    after = {key.caller.name: key for key in keys}
    ring.replace(keys)
    both = after.keys() & before.keys()
    logger.info(
        "api_keys_reloaded",
        added=sorted(after.keys() - before.keys()),
        removed=sorted(before.keys() - after.keys()),
        changed=sorted(name for name in both if after[name] != before[name]),
        key_count=len(keys),
    )
