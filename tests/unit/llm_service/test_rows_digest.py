"""The digest of rows that are arriving."""

from __future__ import annotations

import asyncio
import hashlib
import random

from llm_service.rows_digest import RowsDigest

SIZE = 1 << 20


async def test_it_is_that_of_the_whole_however_the_rows_come() -> None:
    data = random.Random(1).randbytes(SIZE)
    for seed in range(5):
        chance = random.Random(seed)
        buffer = memoryview(bytearray(SIZE))
        digest = RowsDigest(buffer)
        end = 0
        while end < SIZE:
            begin, end = end, min(SIZE, end + chance.randint(1, 100_000))
            buffer[begin:end] = data[begin:end]
            digest.fill(end)
            if chance.random() < 0.5:
                await asyncio.sleep(0)
        assert await digest.value() == hashlib.sha256(data).digest()


async def test_of_no_rows() -> None:
    assert await RowsDigest(memoryview(b"")).value() == hashlib.sha256().digest()
