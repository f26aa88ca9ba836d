"""The life of one chat request: images fetched and named, embeddings piped, events streamed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from gateway.events import ChatEvent
from gateway.fairness import FetchLanes
from gateway.fields import CHAT, Options, generate_fields, image_options
from gateway.images.budget import ImageBudget
from gateway.images.data_urls import Attachments
from gateway.images.fetcher import ImageFetcher
from gateway.memory import HeldFile
from gateway.openai.requests import ChatCompletionRequest, ImageReference
from gateway.pools import Pools
from gateway.record import RequestRecord
from gateway.services.llm import Generation
from gateway.services.llm import ModelInfo as LLMInfo
from gateway.services.messages import EmbeddingHeader, EmbeddingPiece
from gateway.services.pair import ServicePair
from gateway.services.vision import EncodeRequest, ModelInfo
from gateway.tasks import owning
from protos.errors import (
    DeadlineError,
    ImageTooLargeError,
    InvalidArgumentError,
    ModelMismatchError,
    UnavailableError,
)
from protos.identity import EmbeddingId, content_digest, recipe_digest

# Of one request at a time; more would fill the vision service's queue for everybody else.
CONCURRENT_ENCODING_COUNT = 8
# Of one request at a time, and of all requests beside the one that each may always have.
CONCURRENT_FETCH_COUNT = 16
SHARED_FETCH_COUNT = 128


@dataclass(frozen=True)
class ChatLimits:
    """What one request may have: images, bytes of all its image files together, hosts of these,
    and time in the queue of either service; None for any."""

    max_image_count: int
    max_total_image_byte_count: int
    max_image_host_count: int
    max_queue_seconds: float | None = None


@dataclass(frozen=True)
class NamedImage:
    """A fetched image file.

    Attributes:
        reference: where the request has it.
        options: what its options are called in the request and in the contract.
        encoding: the file, and how to encode it.
    """

    reference: ImageReference
    options: Options
    encoding: EncodeRequest

    def param_of(self, field: str) -> str:
        """Returns the JSON path of what a field of EncodeImageRequest was made from, or nothing."""
        param = self.options.param_of(self.reference.source, field)
        return param and self.reference.param_of(param)


class ChatPipeline:
    """Turns chat requests into events, with the help of both services."""

    def __init__(
        self,
        fetcher: ImageFetcher,
        pair: ServicePair,
        pools: Pools,
        limits: ChatLimits,
    ) -> None:
        self._fetcher = fetcher
        self._pair = pair
        self._pools = pools
        self._limits = limits
        self._lanes = FetchLanes(SHARED_FETCH_COUNT, CONCURRENT_FETCH_COUNT)

    async def model_info(self, name: str, deadline: float) -> LLMInfo:
        """Returns what answers to a name that a client gave.

        Raises:
            NotFoundError: nothing does.
        """
        info = await self._pair.llm.model_info(deadline)
        if not info.serves(name):  # perhaps it changed since we asked
            info = await self._pair.llm.ask_model_info(deadline)
        info.check_serves(name)
        return info

    async def stream(
        self,
        request: ChatCompletionRequest,
        attachments: Attachments,
        deadline: float,
        record: RequestRecord,
    ) -> AsyncGenerator[ChatEvent, None]:
        """Yields text deltas, the finish and the usage.

        Args:
            request: what to answer.
            attachments: the images that came with it; they are taken out.
            deadline: when it must be over, in the event loop's time.
            record: filled on the way.

        Raises:
            ServiceError: with the JSON path of the field at fault.
        """
        fields, images = await self._fields(request, attachments, deadline, record)
        fields["max_queue_seconds"] = self._limits.max_queue_seconds
        name_field = partial(CHAT.param_of, request)
        async with self._pair.llm.generate(fields, name_field, deadline) as generation:
            wanted = {index: images[index] for index in await generation.start()}
            for index, image in enumerate(images):
                if index not in wanted:
                    image.encoding.file.let_go()
            event = await self._first_event(generation, wanted, deadline, record)
            record.note_first_token()
            while event is not None:
                record.note_event(event)
                yield event
                event = await generation.read()

    async def _fields(
        self,
        request: ChatCompletionRequest,
        attachments: Attachments,
        deadline: float,
        record: RequestRecord,
    ) -> tuple[dict[str, Any], list[NamedImage]]:
        """Returns a GenerateStart as values by their paths, and the images that it names."""
        references = list(request.images())
        attachments.check_used(reference.source.url for reference in references)
        if not references:  # a text is the LLM service's matter alone
            return generate_fields(request, []), []
        self._check_count(references)
        vision, llm = await self._pair.model_infos(deadline)
        record.image_count = len(references)
        with record.timed("fetch"):
            images = await self._named_images(references, vision, attachments, deadline)
        fields = generate_fields(request, [image.encoding.embedding_id for image in images])
        return fields | {"expected_checkpoint": asdict(llm.checkpoint)}, images

    def _check_count(self, references: Sequence[ImageReference]) -> None:
        if len(references) > self._limits.max_image_count:
            raise InvalidArgumentError(
                f"the request has {len(references)} images;"
                f" the limit is {self._limits.max_image_count}",
                field="messages",
            )

    async def _named_images(
        self,
        references: Sequence[ImageReference],
        info: ModelInfo,
        attachments: Attachments,
        deadline: float,
    ) -> list[NamedImage]:
        budget = ImageBudget(
            self._limits.max_total_image_byte_count, self._limits.max_image_host_count
        )
        images: dict[str, NamedImage] = {}

        async def fetch(reference: ImageReference) -> None:
            file = await self._fetch(reference, info, attachments, budget)
            images[reference.param] = await self._name(reference, info, file)

        fetching = self._lanes.run(partial(fetch, reference) for reference in references)
        try:
            await asyncio.wait_for(fetching, deadline - asyncio.get_running_loop().time())
        except asyncio.TimeoutError as error:
            raise DeadlineError("the images did not arrive within the request's time") from error
        return [images[reference.param] for reference in references]

    async def _fetch(
        self,
        reference: ImageReference,
        info: ModelInfo,
        attachments: Attachments,
        budget: ImageBudget,
    ) -> HeldFile:
        param = reference.param_of("url")
        file = await self._fetcher.fetch(reference.source.url, param, attachments, budget)
        if file.byte_count > info.max_image_byte_count:
            raise ImageTooLargeError(
                f"the image file has {file.byte_count} bytes;"
                f" the limit is {info.max_image_byte_count}",
                field=param,
            )
        return file

    async def _name(self, reference: ImageReference, info: ModelInfo, file: HeldFile) -> NamedImage:
        options = image_options(info.max_tile_count)
        cap: int | None = options.values(reference.source).get("max_tile_count")
        recipe = recipe_digest(info.recipe_sha256, cap or info.default_tile_count)
        content = await self._pools.hashes.run(content_digest, file.content)
        embedding_id = EmbeddingId(content, recipe)
        queue_seconds = self._limits.max_queue_seconds
        encoding = EncodeRequest(file, cap, info.recipe_sha256, embedding_id, queue_seconds)
        return NamedImage(reference, options, encoding)

    async def _first_event(
        self,
        generation: Generation,
        wanted: dict[int, NamedImage],
        deadline: float,
        record: RequestRecord,
    ) -> ChatEvent | None:
        """Sends the wanted images and waits for the answer: whichever fails first ends both."""
        upload = asyncio.create_task(self._upload(generation, wanted, deadline, record))
        reading = asyncio.create_task(generation.read())
        async with owning(upload, reading):
            try:
                _, event = await asyncio.gather(upload, reading)
            except DeadlineError as error:
                if upload.done() and upload.exception() is None:
                    raise
                raise DeadlineError(
                    "the images were not encoded within the request's time"
                ) from error
        return event

    async def _upload(
        self,
        generation: Generation,
        wanted: dict[int, NamedImage],
        deadline: float,
        record: RequestRecord,
    ) -> None:
        slots = asyncio.Semaphore(CONCURRENT_ENCODING_COUNT)

        async def pipe(index: int, image: NamedImage) -> None:
            async with slots, aclosing(self._encode(image, deadline)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, EmbeddingHeader):
                        image.encoding.file.let_go()  # from now on gRPC would not try again
                        record.note_header(piece.tile_count, cache_hit=piece.cache_hit)
                    await generation.send(index, piece)

        tasks = [asyncio.create_task(pipe(index, image)) for index, image in wanted.items()]
        with record.piping(len(wanted)):
            async with owning(*tasks):
                await asyncio.gather(*tasks)
            await generation.end_images()

    async def _encode(
        self, image: NamedImage, deadline: float
    ) -> AsyncGenerator[EmbeddingPiece, None]:
        pieces = self._pair.vision.encode_image(image.encoding, image.param_of, deadline)
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    yield piece
        except ModelMismatchError as error:
            self._pair.vision.forget_model_info()
            raise UnavailableError(
                "the vision service has changed its model; try again", retry_after=1
            ) from error
