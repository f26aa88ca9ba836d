"""The embedding cache: embeddings made before, and those being made, by their ids."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from protos.identity import EmbeddingId
from vision_service.embedding import ImageEmbedding


@dataclass
class _Flight:
    """An encode that runs, and how many requests wait for it."""

    task: asyncio.Task[ImageEmbedding]
    waiter_count: int = 0


class EmbeddingCache:
    """Least recently used embeddings, bounded in bytes; touched by the event loop's thread alone.

    Requests for the same id that come while it is being encoded share that one encode. It is
    cancelled when the last of them has gone.

    Attributes:
        byte_count: bytes of the embeddings that are kept.
    """

    def __init__(self, max_byte_count: int) -> None:
        self._max_byte_count = max_byte_count
        self.byte_count = 0
        self._entries: OrderedDict[EmbeddingId, ImageEmbedding] = OrderedDict()
        self._flights: dict[EmbeddingId, _Flight] = {}

    async def get_or_encode(
        self,
        id_: EmbeddingId,
        encode: Callable[[], Coroutine[Any, Any, ImageEmbedding]],
    ) -> tuple[ImageEmbedding, bool]:
        """Returns the embedding, and whether it was here already.

        Raises:
            ServiceError: whatever `encode` raises; nothing is kept then.
        """
        if id_ in self._entries:
            self._entries.move_to_end(id_)
            return self._entries[id_], True
        if id_ not in self._flights:
            self._flights[id_] = _Flight(asyncio.create_task(encode()))
        return await self._join(id_, self._flights[id_]), False

    async def _join(self, id_: EmbeddingId, flight: _Flight) -> ImageEmbedding:
        flight.waiter_count += 1
        try:
            embedding = await asyncio.shield(flight.task)
        finally:
            flight.waiter_count -= 1
            if flight.task.done() or not flight.waiter_count:
                flight.task.cancel()
                self._land(id_, flight)
        self._keep(embedding)
        return embedding

    def _land(self, id_: EmbeddingId, flight: _Flight) -> None:
        """Forgets the flight, unless a newer one has its place."""
        if self._flights.get(id_) is flight:
            del self._flights[id_]

    def _keep(self, embedding: ImageEmbedding) -> None:
        if embedding.id in self._entries or embedding.byte_count > self._max_byte_count:
            return
        self._entries[embedding.id] = embedding
        self.byte_count += embedding.byte_count
        while self.byte_count > self._max_byte_count:
            _, oldest = self._entries.popitem(last=False)
            self.byte_count -= oldest.byte_count
