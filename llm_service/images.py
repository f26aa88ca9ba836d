"""The images of one request: which tables are held, which are wanted, and how those arrive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import torch

from llm_service.engines.base import ImageRows, Prompt
from llm_service.model import ServedModel
from llm_service.prompt import PromptLayout
from llm_service.sampling import SamplingParams
from llm_service.tables import (
    TableCache,
    TableChunk,
    TableHeader,
    TableMessage,
    TableTrailer,
    TableUpload,
)
from protos.errors import ContextLengthError, DeadlineError, InvalidTensorError

UPLOAD_IDLE_SECONDS = 30.0


@dataclass(frozen=True)
class Generation:
    """A checked `start`.

    Attributes:
        layout: the prompt with its images' places open.
        identities: each image's identity, in order.
        params: how tokens are chosen and when to stop.
        stop_strings: strings that end the text.
        skip_special_tokens: whether the text leaves special tokens out.
        choice_count: answers to generate, >= 1.
        priority: sequences with a higher one run first.
        cache_salt: what separates the prompt's KV cache from others'.
        deadline: when the call must be over, on the clock of `time.monotonic`; None: whenever.
    """

    layout: PromptLayout
    identities: list[bytes]
    params: SamplingParams
    stop_strings: list[str]
    skip_special_tokens: bool
    choice_count: int
    priority: int
    cache_salt: str
    deadline: float | None


class RequestImages:
    """The tables of one request's images: those that are held, and those that arrive.

    A context manager, so that memory reserved for an unfinished upload is given back.
    """

    def __init__(self, model: ServedModel, cache: TableCache, generation: Generation) -> None:
        self._model = model
        self._cache = cache
        self._generation = generation
        self._identities = generation.identities
        held = {identity: cache.get(identity) for identity in self._identities}
        self._tables = {key: table for key, table in held.items() if table is not None}
        self._uploads: dict[bytes, tuple[TableUpload, int]] = {}
        row_counts = {identity: cache.row_count(identity) for identity in self._identities}
        self._row_counts = {key: count for key, count in row_counts.items() if count is not None}
        self._check_context()

    def __enter__(self) -> RequestImages:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for _, byte_count in self._uploads.values():
            self._cache.release(byte_count)

    @property
    def may_be_replaced(self) -> bool:
        """Whether the KV cache might replace the missing images: all row counts are known."""
        return bool(self.wanted()) and self._row_counts.keys() >= set(self._identities)

    def wanted(self) -> list[int]:
        """Returns the indexes of the images that are missing, equal ones once."""
        missing = (key for key in dict.fromkeys(self._identities) if key not in self._tables)
        return [self._identities.index(identity) for identity in missing]

    async def receive(self, messages: AsyncIterator[TableMessage]) -> None:
        """Reads embeddings until no image is missing.

        Raises:
            InvalidTensorError: the stream ends too early, or a message that does not fit.
        """
        while wanted := self.wanted():
            message = await self._next(messages)
            if message is None:
                raise InvalidTensorError(
                    f"the request ended before the embeddings of images {wanted} had arrived",
                    field="images",
                )
            self._take(message)

    async def _next(self, messages: AsyncIterator[TableMessage]) -> TableMessage | None:
        """Reads a message; a sender that has begun an upload, and so holds memory, must go on."""
        seconds = UPLOAD_IDLE_SECONDS if self._uploads else None
        try:
            return await asyncio.wait_for(anext(messages, None), seconds)
        except asyncio.TimeoutError as error:
            raise DeadlineError(f"an embedding made no progress for {seconds} seconds") from error

    def prompt(self) -> Prompt:
        """Returns the prompt that the engine takes, all rows in one table.

        Every image's row count must be known; the rows of those that are missing are zeros.
        """
        images = tuple(map(self._image_rows, self._identities))
        return Prompt(
            token_ids=self._generation.layout.token_ids(
                [image.row_count for image in images], self._model.config.vocabulary_size
            ),
            prompt_table=self._prompt_table(images),
            images=images,
            cache_salt=self._generation.cache_salt,
        )

    def _image_rows(self, identity: bytes) -> ImageRows:
        table = self._tables.get(identity)
        if table is None:
            return ImageRows(identity, self._row_counts[identity], is_held=False)
        return ImageRows(identity, table.shape[0])

    def _prompt_table(self, images: Sequence[ImageRows]) -> torch.Tensor:
        """Returns [rows, hidden]; where it can, it takes no memory of its own: nobody writes."""
        dtype = next((table.dtype for table in self._tables.values()), torch.float32)
        zeros = torch.zeros(1, self._model.config.hidden_size, dtype=dtype)
        if not self._tables:
            return zeros.expand(sum(image.row_count for image in images), -1)
        tables = [
            self._tables.get(image.identity, zeros.expand(image.row_count, -1)) for image in images
        ]
        return tables[0] if len(tables) == 1 else torch.cat(tables)

    def _take(self, message: TableMessage) -> None:
        match message:
            case TableHeader():
                self._begin(message)
            case TableChunk():
                upload, _ = self._upload(message.image_index)
                upload.add(message.offset, message.data)
            case TableTrailer():
                self._end(message)

    def _begin(self, header: TableHeader) -> None:
        identity = self._identity(header.image_index)
        if identity in self._uploads:
            raise InvalidTensorError(
                f"image {header.image_index} was announced already", field="embedding_header"
            )
        spec = header.spec
        spec.check(self._model.config.hidden_size, self._model.max_context_token_count)
        self._row_counts[identity] = spec.row_count
        self._check_context()
        self._cache.reserve(spec.byte_count)
        self._uploads[identity] = (TableUpload(spec), spec.byte_count)

    def _end(self, trailer: TableTrailer) -> None:
        upload, byte_count = self._upload(trailer.image_index)
        identity = self._identity(trailer.image_index)
        table = upload.finish(trailer.crc32)
        del self._uploads[identity]
        self._cache.release(byte_count)
        self._cache.put(identity, table)
        self._tables[identity] = table

    def _upload(self, image_index: int) -> tuple[TableUpload, int]:
        upload = self._uploads.get(self._identity(image_index))
        if upload is None:
            raise InvalidTensorError(
                f"image {image_index} has no embedding_header yet", field="image_index"
            )
        return upload

    def _identity(self, image_index: int) -> bytes:
        if not 0 <= image_index < len(self._identities):
            raise InvalidTensorError(
                f"image {image_index} is none of the request's {len(self._identities)}",
                field="image_index",
            )
        return self._identities[image_index]

    def _check_context(self) -> None:
        """Refuses a prompt that is too long as soon as the known part of it is."""
        known = sum(self._row_counts.get(identity, 0) for identity in self._identities)
        count = self._generation.layout.text_token_count + known
        if count >= self._model.max_context_token_count:
            raise ContextLengthError(
                f"the prompt has {count} tokens or more, which leaves no room for an answer in the"
                f" context of {self._model.max_context_token_count}",
                field="messages",
            )
