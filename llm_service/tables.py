"""Prompt tables: one image's rows, received, checked, and kept for later turns."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import numpy as np
import torch
from isal import isal_zlib

from llm_service.rows_digest import RowsDigest
from llm_service.table_arena import NO_ARENA, TableArena
from protos.errors import (
    AccessDeniedError,
    DataLossError,
    InvalidTensorError,
    ModelMismatchError,
    OverloadedError,
)
from protos.identity import EmbeddingId
from protos.process.settings import KIB
from protos.process.shared_memory import Slot, SlotReader
from protos.signature import EmbeddingClaim, EmbeddingKey
from protos.transport import MAX_CHUNK_BYTE_COUNT

REMEMBERED_TABLE_COUNT = 65_536
# A table may have so many chunks of any size, and one more for each LEAST_CHUNK_BYTE_COUNT.
SMALL_CHUNK_COUNT = 64
LEAST_CHUNK_BYTE_COUNT = 16 * KIB


def joined_tables(tables: Sequence[torch.Tensor], arena: TableArena) -> torch.Tensor:
    """Returns [rows, hidden] of all tables; of one itself, which nobody writes."""
    if len(tables) == 1:
        return tables[0]
    dtype = reduce(torch.promote_types, (table.dtype for table in tables))
    joined = arena.new_table((sum(map(len, tables)), tables[0].shape[1]), dtype)
    return torch.cat(list(tables), out=joined)


@dataclass(frozen=True)
class TableSpec:
    """What a sender announces of a table.

    Attributes:
        dtype: element type; None for one that a table cannot have.
        shape: announced dimensions.
        byte_count: announced size.
    """

    dtype: torch.dtype | None
    shape: tuple[int, ...]
    byte_count: int

    @property
    def row_count(self) -> int:
        """Rows of the table; valid after `check`."""
        return self.shape[0]

    def check(self, hidden_size: int, max_row_count: int) -> None:
        """Refuses a spec that contradicts itself or the model, before memory is spent.

        Raises:
            InvalidTensorError: dtype, shape or byte_count are not those of a table.
            ModelMismatchError: the rows are not of this model's hidden size.
        """
        if self.dtype is None:
            raise InvalidTensorError(
                "an embedding's element type must be BF16, FP16 or FP32",
                field="embedding_header.spec.dtype",
            )
        if len(self.shape) != 2 or not 0 < self.shape[0] <= max_row_count:
            raise InvalidTensorError(
                f"an embedding's shape is {list(self.shape)}; it must be"
                f" [1 to {max_row_count} rows, {hidden_size}]",
                field="embedding_header.spec.shape",
            )
        if self.shape[1] != hidden_size:
            raise ModelMismatchError(
                f"the embedding has rows of {self.shape[1]} values, this model needs {hidden_size}:"
                " the vision service runs another checkpoint",
                field="embedding_header.spec.shape",
            )
        expected = self.shape[0] * self.shape[1] * self.dtype.itemsize
        if self.byte_count != expected:
            raise InvalidTensorError(
                f"an embedding of shape {list(self.shape)} is announced with {self.byte_count}"
                f" bytes; it must have {expected}",
                field="embedding_header.spec.byte_count",
            )


@dataclass(frozen=True)
class TableHeader:
    """Announces the table of one of a request's images."""

    field: ClassVar[str] = "embedding_header"
    image_index: int
    spec: TableSpec


@dataclass(frozen=True)
class TableChunk:
    """Bytes of an announced table from `offset` on."""

    field: ClassVar[str] = "embedding_chunk"
    image_index: int
    offset: int
    data: memoryview


@dataclass(frozen=True)
class SharedTable:
    """Where all bytes of an announced table lie in shared memory."""

    field: ClassVar[str] = "shared_embedding"
    image_index: int
    slot: Slot


@dataclass(frozen=True)
class TableTrailer:
    """Ends a table: CRC-32 of all its bytes, and the vision service's signature."""

    field: ClassVar[str] = "embedding_trailer"
    image_index: int
    crc32: int
    signature: bytes = b""


# `field` is the path of the contract's message, for refusals.
TableMessage = TableHeader | TableChunk | SharedTable | TableTrailer


class TableUpload:
    """One table on its way: its memory, and how much of it has arrived."""

    def __init__(
        self, spec: TableSpec, key: EmbeddingKey | None = None, arena: TableArena = NO_ARENA
    ) -> None:
        """Takes a spec that `check` let through; spends its bytes.

        Args:
            spec: what was announced.
            key: with which the table must be signed; None if it need not be.
            arena: where it gets memory.
        """
        self._spec = spec
        self._key = key
        self._bytes = arena.new_table([spec.byte_count], torch.uint8)
        self._array = self._bytes.numpy()
        self._buffer = self._array.data
        self._received = 0
        self._crc32 = 0
        self._chunk_count = 0
        self._digest = RowsDigest(self._buffer)

    def add(self, offset: int, data: memoryview) -> None:
        """Takes the next chunk.

        Raises:
            InvalidTensorError: the chunk is empty, too large, not the next, or one too many.
        """
        self._count_chunk()
        end = self._received + len(data)
        if offset != self._received:
            raise InvalidTensorError(
                f"the chunk starts at byte {offset}; it must start at {self._received}",
                field="embedding_chunk.offset",
            )
        if not 0 < len(data) <= MAX_CHUNK_BYTE_COUNT:
            raise InvalidTensorError(
                f"the chunk has {len(data)} bytes; it must have 1 to {MAX_CHUNK_BYTE_COUNT}",
                field="embedding_chunk.data",
            )
        if end > self._spec.byte_count:
            raise InvalidTensorError(
                f"the chunk ends at byte {end}, but the embedding at {self._spec.byte_count}",
                field="embedding_chunk.data",
            )
        # Both let go of the interpreter's lock, which the engine's thread needs; a memoryview would
        # not. Threads for chunks were not tried.
        self._array[self._received : end] = np.frombuffer(data, dtype=np.uint8)
        self._received = end
        self._crc32 = isal_zlib.crc32(data, self._crc32)
        if self._key is not None:
            self._digest.fill(end)

    async def read(self, slot: Slot, memory: SlotReader) -> None:
        """Takes the whole table from shared memory, on threads.

        Raises:
            InvalidTensorError: bytes of it have arrived already.
            DataLossError: it is not there, or not any more.
        """
        if self._received:
            raise InvalidTensorError(
                f"{self._received} bytes of the embedding have arrived already",
                field=SharedTable.field,
            )
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._read, slot, memory, loop)

    def _read(self, slot: Slot, memory: SlotReader, loop: asyncio.AbstractEventLoop) -> None:
        for end in memory.read(slot, self._buffer):
            self._crc32 = isal_zlib.crc32(self._buffer[self._received : end], self._crc32)
            self._received = end
            if self._key is not None:
                loop.call_soon_threadsafe(self._digest.fill, end)

    def _count_chunk(self) -> None:
        """Refuses a table in crumbs: each chunk takes the event loop's time, however small."""
        self._chunk_count += 1
        limit = SMALL_CHUNK_COUNT + self._spec.byte_count // LEAST_CHUNK_BYTE_COUNT
        if self._chunk_count > limit:
            raise InvalidTensorError(
                f"the embedding of {self._spec.byte_count} bytes has more than {limit} chunks,"
                " which is the limit",
                field="embedding_chunk.data",
            )

    async def check_signature(self, embedding_id: EmbeddingId, signature: bytes) -> None:
        """Refuses a whole table that no vision service has signed, if it must be signed.

        Raises:
            AccessDeniedError: the signature is missing, or another.
        """
        if self._key is None:
            return
        assert self._spec.dtype is not None
        claim = EmbeddingClaim(
            id=embedding_id,
            dtype=str(self._spec.dtype).removeprefix("torch."),
            shape=self._spec.shape,
            rows_sha256=await self._digest.value(),
        )
        if not self._key.has_signed(claim, signature):
            raise AccessDeniedError(
                f"the embedding {'has another signature' if signature else 'is not signed'};"
                " this service takes only what a vision service with the same"
                " --embedding-key-file has made",
                field="embedding_trailer.signature",
            )

    def finish(self, crc32: int) -> torch.Tensor:
        """Returns the table [rows, hidden]; it shares the upload's memory.

        Raises:
            InvalidTensorError: bytes are missing.
            DataLossError: the checksum differs.
        """
        if self._received != self._spec.byte_count:
            raise InvalidTensorError(
                f"the embedding ended after {self._received} of {self._spec.byte_count} bytes",
                field=TableTrailer.field,
            )
        if crc32 != self._crc32:
            raise DataLossError(
                f"the embedding's CRC-32 is {self._crc32:08x}, announced as {crc32:08x}",
                retry_after=0.0,
            )
        assert self._spec.dtype is not None
        return self._bytes.view(self._spec.dtype).view(self._spec.shape)


class TableCache:
    """The tables of recent images by embedding id: least recently used first out.

    It remembers how many rows a table had after the table has gone: where the KV cache still holds
    what the rows became, the prompt needs no more than their number.

    Attributes:
        max_byte_count: most bytes that are kept, and most that may be on their way at once.
        key: with which tables that arrive must be signed; None if they need not be.
        memory: where tables may lie instead of being sent; None: nowhere.
        arena: where tables get memory.
    """

    def __init__(
        self,
        max_byte_count: int,
        key: EmbeddingKey | None = None,
        memory: SlotReader | None = None,
        arena: TableArena = NO_ARENA,
    ) -> None:
        self.max_byte_count = max_byte_count
        self.key = key
        self.memory = memory
        self.arena = arena
        self._tables: OrderedDict[EmbeddingId, torch.Tensor] = OrderedDict()
        self._gone_row_counts: OrderedDict[EmbeddingId, int] = OrderedDict()
        self._held_byte_count = 0
        self._incoming_byte_count = 0

    def get(self, embedding_id: EmbeddingId) -> torch.Tensor | None:
        """Returns the table [rows, hidden] of an image, or None when it is not held."""
        table = self._tables.get(embedding_id)
        if table is not None:
            self._tables.move_to_end(embedding_id)
        return table

    def row_count(self, embedding_id: EmbeddingId) -> int | None:
        """Returns the rows of an image's table, held or gone; None when they are not known."""
        if (table := self._tables.get(embedding_id)) is not None:
            return table.shape[0]
        if embedding_id in self._gone_row_counts:
            self._gone_row_counts.move_to_end(embedding_id)
        return self._gone_row_counts.get(embedding_id)

    def put(self, embedding_id: EmbeddingId, table: torch.Tensor) -> None:
        """Keeps a table; the least recently used ones make room. The first one of an id stays."""
        if embedding_id in self._tables:
            return
        self._tables[embedding_id] = table
        self._held_byte_count += table.nbytes
        while self._held_byte_count > self.max_byte_count:
            evicted_id, evicted = self._tables.popitem(last=False)
            self._held_byte_count -= evicted.nbytes
            self._remember(evicted_id, evicted.shape[0])

    def reserve(self, byte_count: int) -> None:
        """Accounts for a table that is about to arrive; `release` ends it.

        Raises:
            OverloadedError: too many bytes are on their way already.
        """
        if self._incoming_byte_count + byte_count > self.max_byte_count:
            raise OverloadedError(
                f"{self._incoming_byte_count} bytes of image embeddings are arriving and"
                f" {byte_count} more would pass the limit of {self.max_byte_count}",
                retry_after=1.0,
            )
        self._incoming_byte_count += byte_count

    def release(self, byte_count: int) -> None:
        """Ends a reservation, whatever became of its table."""
        self._incoming_byte_count -= byte_count

    def _remember(self, embedding_id: EmbeddingId, row_count: int) -> None:
        self._gone_row_counts[embedding_id] = row_count
        self._gone_row_counts.move_to_end(embedding_id)
        if len(self._gone_row_counts) > REMEMBERED_TABLE_COUNT:
            self._gone_row_counts.popitem(last=False)
