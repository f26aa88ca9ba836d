"""The life of one generation: images fetched and named, embeddings piped, events streamed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
)
from dataclasses import asdict, dataclass, replace

import structlog

from gateway.events import ChatEvent
from gateway.generation import GenerationRequest
from gateway.images.data_urls import Attachments
from gateway.record import RequestRecord, TokenTally
from gateway.request_images import FetchedImage, NamedImage, RequestImages
from gateway.services.llm import Generation
from gateway.services.llm import ModelInfo as LLMInfo
from gateway.services.messages import EmbeddingHeader, EmbeddingTrailer
from gateway.services.pair import Match, ServicePair
from gateway.tasks import owning
from protos.errors import (
    ContextLengthError,
    DeadlineError,
    InvalidArgumentError,
    ModelMismatchError,
    ServiceError,
    UnavailableError,
)

logger = structlog.get_logger()

# Of one request at a time; more would fill the vision service's queue for everybody else.
CONCURRENT_ENCODING_COUNT = 8
Answering = AbstractAsyncContextManager[tuple[LLMInfo, AsyncGenerator[ChatEvent, None]]]


class ChatPipeline:
    """Turns chat requests into events, with the help of both services."""

    def __init__(
        self,
        images: RequestImages,
        pair: ServicePair,
    ) -> None:
        self._images = images
        self._pair = pair

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
        await self._check_guide(request, deadline)
        images = await self._images.fetch(request, attachments, deadline, record)
        turn = _Turn(request, images, deadline, record)
        tally = record.tally(request)
        async with AsyncExitStack() as exits:
            info, generation, first = await self._begin(turn, exits)
            record.note_first_token()
            async with aclosing(_noted(generation, first, record, tally)) as events:
                yield info, events

    async def _check_guide(self, request: GenerationRequest, deadline: float) -> None:
        """Refuses what the answer cannot be held to before any image is fetched or encoded for it.

        Whatever else goes wrong, the generation meets as well.
        """
        if not (request.images and (key := request.guide_key)):
            return
        try:
            await self._pair.llm.check_guide(request.fields, request.name_field, deadline, key)
        except (InvalidArgumentError, ContextLengthError):
            raise
        except ServiceError as error:
            logger.info("guide_not_checked", reason=error.reason)

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
    generation: Generation, first: ChatEvent | None, record: RequestRecord, tally: TokenTally
) -> AsyncGenerator[ChatEvent, None]:
    event = first
    with record.timed("decode"):
        while event is not None:
            record.note_event(event)
            tally.note_event(event)
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
