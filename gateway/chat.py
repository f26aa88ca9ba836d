"""The life of one generation: images fetched and named, embeddings piped, events streamed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
)
from dataclasses import asdict, dataclass, replace
from functools import partial

from gateway.events import ChatEvent
from gateway.fairness import FetchLanes
from gateway.fields import Options, image_options
from gateway.generation import GenerationRequest, ImageReference
from gateway.images.budget import ImageBudget
from gateway.images.data_urls import Attachments
from gateway.images.fetcher import ImageFetcher
from gateway.memory import HeldFile
from gateway.pools import Pools
from gateway.record import RequestRecord
from gateway.services.llm import Generation
from gateway.services.llm import ModelInfo as LLMInfo
from gateway.services.messages import EmbeddingHeader, EmbeddingTrailer
from gateway.services.pair import Match, ServicePair
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
Answering = AbstractAsyncContextManager[tuple[LLMInfo, AsyncGenerator[ChatEvent, None]]]


@dataclass(frozen=True)
class ChatLimits:
    """What one request may have: images, bytes of all its image files together, hosts of these."""

    max_image_count: int
    max_total_image_byte_count: int
    max_image_host_count: int


@dataclass(frozen=True)
class FetchedImage:
    """An image file as it came: where the request has it, its bytes, and their SHA-256."""

    reference: ImageReference
    file: HeldFile
    content_sha256: bytes


@dataclass(frozen=True)
class NamedImage:
    """An image file with what a vision replica will make of it.

    Attributes:
        reference: where the request has it.
        options: what its options are called in the request and in the contract.
        encoding: the file, and how to encode it.
    """

    reference: ImageReference
    options: Options
    encoding: EncodeRequest

    @classmethod
    def of(cls, index: int, image: FetchedImage, info: ModelInfo) -> NamedImage:
        """Returns a request's image of this index as a replica that runs this encodes it."""
        options = image_options(info.max_tile_count)
        cap: int | None = options.values(image.reference.source).get("max_tile_count")
        recipe = recipe_digest(info.recipe_sha256, cap or info.default_tile_count)
        embedding_id = EmbeddingId(image.content_sha256, recipe)
        encoding = EncodeRequest(image.file, cap, info.recipe_sha256, embedding_id, index)
        return cls(image.reference, options, encoding)

    def param_of(self, field: str) -> str:
        """Returns the JSON path of what a field of EncodeImageRequest was made from, or nothing."""
        param = self.options.param_of(self.reference.source, field)
        return param and self.reference.name_field(param)


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

    @asynccontextmanager
    async def answering(
        self,
        request: GenerationRequest,
        attachments: Attachments,
        deadline: float,
        record: RequestRecord,
    ) -> AsyncIterator[tuple[LLMInfo, AsyncGenerator[ChatEvent, None]]]:
        """Yields who answers, and text deltas, the finish and the usage; the first is there.

        Args:
            request: what to answer.
            attachments: the images that came with it; they are taken out.
            deadline: when it must be over, in the event loop's time.
            record: filled on the way.

        Raises:
            NotFoundError: no replica answers to the model's name.
            ServiceError: with the JSON path of the field at fault.
        """
        await self._pair.llm_info(request.model, deadline)
        images = await self._fetched_images(request, attachments, deadline, record)
        turn = _Turn(request, images, deadline, record)
        async with AsyncExitStack() as exits:
            info, generation, first = await self._begin(turn, exits)
            record.note_first_token()
            async with aclosing(_noted(generation, first, record)) as events:
                yield info, events

    async def _begin(
        self, turn: _Turn, exits: AsyncExitStack
    ) -> tuple[LLMInfo, Generation, ChatEvent | None]:
        """Returns who answers, the generation and its first event."""
        matches = self._pair.matches(
            turn.request.model, turn.key, turn.deadline, with_vision=bool(turn.images)
        )
        async with aclosing(matches):
            async for match, key in matches:
                try:
                    return match.llm, *await self._begin_at(match, key, turn, exits)
                except ModelMismatchError as error:
                    self._pair.forget()
                    await exits.aclose()
                    if not all(image.file.is_held for image in turn.images):
                        raise UnavailableError(
                            "the services are changing their model; try again", retry_after=1
                        ) from error
        raise AssertionError("it ends with an error")

    async def _begin_at(
        self, match: Match, key: str, turn: _Turn, exits: AsyncExitStack
    ) -> tuple[Generation, ChatEvent | None]:
        vision = match.vision
        images = [
            NamedImage.of(index, image, vision) for index, image in enumerate(turn.images) if vision
        ]
        embedding_ids = [image.encoding.embedding_id for image in images]
        fields = {
            **turn.request.fields,
            "images": [asdict(embedding_id) for embedding_id in embedding_ids],
            "expected_checkpoint": asdict(match.llm.checkpoint),
        }
        turn.record.note_start(embedding_ids)
        generation = await exits.enter_async_context(
            self._pair.llm.generate(fields, turn.request.name_field, key, turn.deadline)
        )
        wanted = {index: images[index] for index in generation.wanted}
        for index, image in enumerate(images):
            if index not in wanted:
                image.encoding.file.let_go()
        return generation, await self._first_event(generation, wanted, turn)

    async def _fetched_images(
        self,
        request: GenerationRequest,
        attachments: Attachments,
        deadline: float,
        record: RequestRecord,
    ) -> list[FetchedImage]:
        """Returns the request's images, in their order."""
        references = request.images
        attachments.check_used(reference.source.url for reference in references)
        if not references:
            return []
        self._check_count(len(references), request.images_field)
        record.image_count = len(references)
        info = await self._pair.vision_info(request.model, deadline)
        with record.timed("fetch"):
            return await self._fetch_all(references, info, attachments, deadline)

    def _check_count(self, count: int, field: str) -> None:
        if count > self._limits.max_image_count:
            raise InvalidArgumentError(
                f"the request has {count} images; the limit is {self._limits.max_image_count}",
                field=field,
            )

    async def _fetch_all(
        self,
        references: Sequence[ImageReference],
        info: ModelInfo,
        attachments: Attachments,
        deadline: float,
    ) -> list[FetchedImage]:
        budget = ImageBudget(
            self._limits.max_total_image_byte_count, self._limits.max_image_host_count
        )
        images: dict[int, FetchedImage] = {}

        async def fetch(index: int, reference: ImageReference) -> None:
            file = await self._fetch(reference, info, attachments, budget)
            digest = await self._pools.hashes.run(content_digest, file.content)
            images[index] = FetchedImage(reference, file, digest)

        fetching = self._lanes.run(partial(fetch, *entry) for entry in enumerate(references))
        try:
            await asyncio.wait_for(fetching, deadline - asyncio.get_running_loop().time())
        except asyncio.TimeoutError as error:
            raise DeadlineError("the images did not arrive within the request's time") from error
        return [images[index] for index in range(len(references))]

    async def _fetch(
        self,
        reference: ImageReference,
        info: ModelInfo,
        attachments: Attachments,
        budget: ImageBudget,
    ) -> HeldFile:
        param = reference.name_field("url")
        file = await self._fetcher.fetch(reference.source.url, param, attachments, budget)
        if file.byte_count > info.max_image_byte_count:
            raise ImageTooLargeError(
                f"the image file has {file.byte_count} bytes;"
                f" the limit is {info.max_image_byte_count}",
                field=param,
            )
        return file

    async def _first_event(
        self, generation: Generation, wanted: dict[int, NamedImage], turn: _Turn
    ) -> ChatEvent | None:
        """Sends the wanted images and waits for the answer: whichever fails first ends both."""
        upload = asyncio.create_task(self._upload(generation, wanted, turn))
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
            except asyncio.CancelledError:
                if not upload.done():  # it fails, and a write that was cut off has ended the call
                    await upload
                raise
        return event

    async def _upload(
        self, generation: Generation, wanted: dict[int, NamedImage], turn: _Turn
    ) -> None:
        slots = asyncio.Semaphore(CONCURRENT_ENCODING_COUNT)
        encode = self._pair.vision.encode_image

        async def pipe(index: int, image: NamedImage) -> None:
            encoding = replace(image.encoding, shared_memory=generation.shared_memory)
            pieces = encode(encoding, image.param_of, turn.deadline)
            async with slots, aclosing(pieces):
                async for piece in pieces:
                    if isinstance(piece, EmbeddingHeader):
                        image.encoding.file.let_go()  # from now on nobody is asked once more
                        turn.record.note_header(index, piece)
                    await generation.send(index, piece)
                    if isinstance(piece, EmbeddingTrailer):
                        turn.record.note_trailer(piece)
                        await generation.until_read(index)

        tasks = [asyncio.create_task(pipe(index, image)) for index, image in wanted.items()]
        with turn.record.piping(len(wanted)):
            async with owning(*tasks):
                await asyncio.gather(*tasks)
            await generation.end_images()


async def _noted(
    generation: Generation, first: ChatEvent | None, record: RequestRecord
) -> AsyncGenerator[ChatEvent, None]:
    event = first
    with record.timed("decode"):
        while event is not None:
            record.note_event(event)
            yield event
            event = await generation.read()


@dataclass(frozen=True)
class _Turn:
    """A request with its images, on its way."""

    request: GenerationRequest
    images: list[FetchedImage]
    deadline: float
    record: RequestRecord

    @property
    def key(self) -> str:
        """Leads to the LLM replica that has the conversation's beginning."""
        return self.request.conversation_key([image.content_sha256 for image in self.images])
