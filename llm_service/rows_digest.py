"""The SHA-256 of rows that are arriving, computed on a thread beside the event loop."""

from __future__ import annotations

import asyncio
import hashlib


class RowsDigest:
    """SHA-256 of a buffer that fills from its beginning.

    Half a MB takes up to a millisecond: too long for the event loop, and the rows keep coming in
    the meantime.
    """

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer
        self._sha256 = hashlib.sha256()
        self._filled = 0
        self._hashed = 0  # written by the thread alone
        self._hashing: asyncio.Future[None] | None = None

    def fill(self, byte_count: int) -> None:
        """Takes note that so many bytes are there now; they must not change any more."""
        self._filled = byte_count
        if self._hashing is None or self._hashing.done():
            self._hashing = asyncio.get_running_loop().run_in_executor(None, self._catch_up)

    async def value(self) -> bytes:
        """Returns the digest of all bytes that are there, 32 bytes."""
        while self._hashed < self._filled:
            self.fill(self._filled)
            assert self._hashing is not None
            await self._hashing
        return self._sha256.digest()

    def _catch_up(self) -> None:
        while (end := self._filled) > self._hashed:
            self._sha256.update(self._buffer[self._hashed : end])
            self._hashed = end
