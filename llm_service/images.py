"""The images of one request: which tables are held, which are wanted, and how those arrive."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import torch

from llm_service import wire
from llm_service.engines import ImageRows, Prompt
from llm_service.model import ServedModel
from llm_service.prompt import PromptLayout
from llm_service.sampling import SamplingParams
from llm_service.tables import TableCache, TableUpload
from protos.errors import ContextLengthError, InvalidArgumentError, InvalidTensorError
from protos.internvl.v1 import llm_pb2


@dataclass(frozen=True)
class Generation:
    """A checked `start`.

    Attributes:
        layout: the prompt with its images' places open.
        identities: each image's identity, in order.
        params: how tokens are chosen and when to stop.
        stop_strings: strings that end the text.
        skip_special_tokens: whether the text leaves special tokens out.
    """

    layout: PromptLayout
    identities: list[bytes]
    params: SamplingParams
    stop_strings: list[str]
    skip_special_tokens: bool


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
        self._row_counts = {key: table.shape[0] for key, table in self._tables.items()}
        self._check_context()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc_info: object) -> None:
        for _, byte_count in self._uploads.values():
            self._cache.release(byte_count)

    def wanted(self) -> llm_pb2.WantedImages:
        """Returns the images that are missing, equal ones once."""
        return llm_pb2.WantedImages(
            image_indexes=[self._identities.index(i) for i in self._missing()]
        )

    async def receive(self, requests: AsyncIterator[llm_pb2.GenerateRequest]) -> None:
        """Reads embeddings until no image is missing.

        Raises:
            InvalidTensorError: the stream ends too early, or a message that does not fit.
        """
        while missing := self._missing():
            request = await anext(requests, None)
            if request is None:
                indexes = [self._identities.index(identity) for identity in missing]
                raise InvalidTensorError(
                    f"the request ended before the embeddings of images {indexes} had arrived",
                    field="images",
                )
            self._take(request)

    def prompt(self) -> Prompt:
        """Returns the prompt that the engine takes, all rows in one table."""
        tables = [self._tables[identity] for identity in self._identities]
        row_counts = [table.shape[0] for table in tables]
        empty = torch.empty(0, self._model.config.hidden_size)
        return Prompt(
            token_ids=self._generation.layout.token_ids(
                row_counts, self._model.config.vocabulary_size
            ),
            prompt_table=torch.cat(tables) if tables else empty,
            images=tuple(map(ImageRows, self._identities, row_counts)),
        )

    def _missing(self) -> list[bytes]:
        return [key for key in dict.fromkeys(self._identities) if key not in self._tables]

    def _take(self, request: llm_pb2.GenerateRequest) -> None:
        match request.WhichOneof("message"):
            case "embedding_header":
                self._begin(request.embedding_header)
            case "embedding_chunk":
                chunk = request.embedding_chunk
                upload, _ = self._upload(chunk.image_index)
                upload.add(chunk.chunk.offset, chunk.chunk.data)
            case "embedding_trailer":
                self._end(request.embedding_trailer)
            case other:
                raise InvalidArgumentError(
                    f"after start come embeddings, not {other or 'an empty message'}",
                    field=other or "message",
                )

    def _begin(self, header: llm_pb2.EmbeddingHeader) -> None:
        identity = self._identity(header.image_index)
        if identity in self._uploads:
            raise InvalidTensorError(
                f"image {header.image_index} was announced already", field="embedding_header"
            )
        spec = wire.table_spec(header.spec)
        spec.check(self._model.config.hidden_size, self._model.max_context_token_count)
        self._row_counts[identity] = spec.row_count
        self._check_context()
        self._cache.reserve(spec.byte_count)
        self._uploads[identity] = (TableUpload(spec), spec.byte_count)

    def _end(self, trailer: llm_pb2.EmbeddingTrailer) -> None:
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
