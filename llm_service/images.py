"""The images of one request: which tables are held, which are wanted, and how those arrive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import torch

from llm_service.engines.base import ImageRows, Prompt
from llm_service.model import ModelInfo
from llm_service.prompt import PromptLayout
from llm_service.tables import (
    SharedTable,
    TableCache,
    TableChunk,
    TableHeader,
    TableMessage,
    TableSpec,
    TableTrailer,
    TableUpload,
    joined_tables,
)
from protos.errors import ContextLengthError, DeadlineError, InvalidTensorError
from protos.identity import EmbeddingId
from protos.process.shared_memory import SlotReader

# What has been announced holds memory.
UPLOAD_IDLE_SECONDS = 30.0


class RequestImages:
    """The tables of one request's images: those that are held, and those that arrive.

    A context manager, so that memory reserved for an unfinished upload is given back.
    """

    def __init__(
        self,
        info: ModelInfo,
        cache: TableCache,
        layout: PromptLayout,
        embedding_ids: Sequence[EmbeddingId],
    ) -> None:
        """Looks the images up.

        Args:
            info: what the service runs.
            cache: the tables that are held.
            layout: the prompt with its images' places open.
            embedding_ids: the images in order, as many as there are places.

        Raises:
            ContextLengthError: the prompt is too long, whatever its unknown images have.
        """
        self._info = info
        self._cache = cache
        self._layout = layout
        self._ids = embedding_ids
        held = {image: cache.get(image) for image in embedding_ids}
        self._tables = {image: table for image, table in held.items() if table is not None}
        self._uploads: dict[EmbeddingId, tuple[TableUpload, int]] = {}
        self._announced: set[EmbeddingId] = set()
        known = {image: cache.row_count(image) for image in embedding_ids}
        self._row_counts = {image: count for image, count in known.items() if count is not None}
        self._check_context()

    def __enter__(self) -> RequestImages:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for _, byte_count in self._uploads.values():
            self._cache.release(byte_count)

    @property
    def may_be_replaced(self) -> bool:
        """Whether the KV cache might replace the missing images: all row counts are known."""
        return bool(self.wanted()) and self._row_counts.keys() >= set(self._ids)

    def wanted(self) -> list[int]:
        """Returns the indexes of the images that are missing, equal ones once."""
        missing = (image for image in dict.fromkeys(self._ids) if image not in self._tables)
        return [self._ids.index(image) for image in missing]

    async def receive(self, messages: AsyncIterator[TableMessage]) -> AsyncGenerator[int, None]:
        """Reads embeddings until no image is missing; yields those read from shared memory.

        Raises:
            InvalidTensorError: the stream ends too early, or a message that does not fit.
            AccessDeniedError: an embedding is not signed as it must be.
            DataLossError: an embedding is not that which its trailer says, or not where it is told.
            DeadlineError: they did not arrive in time.
        """
        deadline = time.monotonic() + self._info.max_upload_seconds
        while wanted := self.wanted():
            message = await self._next(messages, deadline)
            if message is None:
                raise InvalidTensorError(
                    f"the request ended before the embeddings of images {wanted} had arrived",
                    field="images",
                )
            await self._take(message)
            if isinstance(message, SharedTable):
                yield message.image_index

    async def _next(
        self, messages: AsyncIterator[TableMessage], deadline: float
    ) -> TableMessage | None:
        """Reads a message; a sender may wait for the vision service, but then must go on."""
        left = max(0.0, deadline - time.monotonic())
        idle = UPLOAD_IDLE_SECONDS if self._uploads else left
        try:
            return await asyncio.wait_for(anext(messages, None), min(idle, left))
        except asyncio.TimeoutError as error:
            stalled = f"an embedding made no progress for {idle:g} seconds"
            late = f"the embeddings did not arrive within {self._info.max_upload_seconds:g} seconds"
            raise DeadlineError(stalled if idle < left else late) from error

    @property
    def copied_byte_count(self) -> int:
        """Bytes of the tables that `prompt` joins; a single one is taken as it is."""
        return sum(table.nbytes for table in self._tables.values()) if len(self._ids) > 1 else 0

    def prompt(self, cache_salt: str) -> Prompt:
        """Returns the prompt that the engine takes, all rows in one table.

        Every image's row count must be known; the rows of those that are missing are zeros.
        """
        images = tuple(map(self._image_rows, self._ids))
        return Prompt(
            token_ids=self._layout.token_ids(
                [image.row_count for image in images], self._info.config.vocabulary_size
            ),
            prompt_table=self._prompt_table(images),
            images=images,
            cache_salt=cache_salt,
            field=self._layout.field,
        )

    def _image_rows(self, embedding_id: EmbeddingId) -> ImageRows:
        table = self._tables.get(embedding_id)
        if table is None:
            return ImageRows(embedding_id, self._row_counts[embedding_id], is_held=False)
        return ImageRows(embedding_id, table.shape[0])

    def _prompt_table(self, images: Sequence[ImageRows]) -> torch.Tensor:
        """Returns [rows, hidden]; where it can, it takes no memory of its own: nobody writes."""
        dtype = next((table.dtype for table in self._tables.values()), torch.float32)
        zeros = torch.zeros(1, self._info.config.hidden_size, dtype=dtype)
        if not self._tables:
            return zeros.expand(sum(image.row_count for image in images), -1)
        tables = [
            self._tables.get(image.embedding_id, zeros.expand(image.row_count, -1))
            for image in images
        ]
        return joined_tables(tables, self._cache.arena)

    async def _take(self, message: TableMessage) -> None:
        match message:
            case TableHeader():
                self._begin(message)
            case TableChunk():
                upload, _ = self._upload(message)
                upload.add(message.offset, message.data)
            case SharedTable():
                upload, _ = self._upload(message)
                await upload.read(message.slot, self._memory(message))
            case TableTrailer():
                await self._end(message)

    def _memory(self, message: SharedTable) -> SlotReader:
        if self._cache.memory is None:
            raise InvalidTensorError(
                "this service shares no memory with others", field=message.field
            )
        return self._cache.memory

    def _begin(self, header: TableHeader) -> None:
        embedding_id = self._embedding_id(header)
        if embedding_id in self._announced:
            raise InvalidTensorError(
                f"image {header.image_index} has been announced already", field=header.field
            )
        spec = header.spec
        spec.check(self._info.config.hidden_size, self._info.max_context_token_count)
        self._row_counts[embedding_id] = spec.row_count
        self._check_context()
        self._announced.add(embedding_id)
        self._uploads[embedding_id] = (self._new_upload(spec), spec.byte_count)

    def _new_upload(self, spec: TableSpec) -> TableUpload:
        self._cache.reserve(spec.byte_count)
        try:
            return TableUpload(spec, self._cache.key, self._cache.arena)
        except BaseException:  # there may be no memory for it
            self._cache.release(spec.byte_count)
            raise

    async def _end(self, trailer: TableTrailer) -> None:
        upload, byte_count = self._upload(trailer)
        embedding_id = self._embedding_id(trailer)
        table = upload.finish(trailer.crc32)
        await upload.check_signature(embedding_id, trailer.signature)
        del self._uploads[embedding_id]
        self._cache.release(byte_count)
        self._cache.put(embedding_id, table)
        self._tables[embedding_id] = table

    def _upload(self, message: TableChunk | SharedTable | TableTrailer) -> tuple[TableUpload, int]:
        upload = self._uploads.get(self._embedding_id(message))
        if upload is None:
            raise InvalidTensorError(
                f"image {message.image_index} has not been announced",
                field=f"{message.field}.image_index",
            )
        return upload

    def _embedding_id(self, message: TableMessage) -> EmbeddingId:
        if not 0 <= message.image_index < len(self._ids):
            raise InvalidTensorError(
                f"there is no image {message.image_index}; the request has {len(self._ids)}",
                field=f"{message.field}.image_index",
            )
        return self._ids[message.image_index]

    def _check_context(self) -> None:
        """Refuses a prompt that is too long as soon as the known part of it is."""
        known = sum(self._row_counts.get(image, 0) for image in self._ids)
        count = self._layout.text_token_count + known
        if count >= self._info.max_context_token_count:
            raise ContextLengthError.of_prompt(
                f"it has {count} tokens or more, which leaves no room for an answer",
                self._info.max_context_token_count,
                field=self._layout.field,
            )
