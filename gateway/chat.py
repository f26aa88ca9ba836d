"""The life of one generation: images fetched and named, embeddings piped, events streamed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
)
from dataclasses import asdict, dataclass, replace

import structlog

from gateway.events import ChatEvent, Usage
from gateway.generation import GenerationRequest
from gateway.images.data_urls import Attachments
from gateway.record import RequestRecord, TokenTally
from gateway.request_images import FetchedImage, NamedImage, RequestImages
from gateway.services.channel import LLM_SERVICE, VISION_SERVICE
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
from protos.process.tracing import Span, Value, current_span, span

logger = structlog.get_logger()

# Of one request at a time; more would fill the vision service's queue for everybody else.
CONCURRENT_ENCODING_COUNT = 8
ENCODE_CALL: Mapping[str, Value] = {
    "rpc.system.name": "grpc",
    "rpc.method": f"{VISION_SERVICE}/EncodeImage",
}
GENERATE_CALL: Mapping[str, Value] = {
    "rpc.system.name": "grpc",
    "rpc.method": f"{LLM_SERVICE}/Generate",
}
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
        info = await self._pair.llm_info(request.model, deadline)
        record.model = info.model
        await self._check_guide(request, deadline)
        images = await self._images.fetch(request, attachments, deadline, record)
        turn = _Turn(request, images, deadline, record)
        tally = record.tally(request)
        async with AsyncExitStack() as exits:
            info, generation, first = await self._begin(turn, exits)
            record.model = info.model
            record.note_first_token()
            current_span().event("first_token")
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
                    current_span().fail(error.reason)
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
        calling = exits.enter_context(span("llm generate", "client", GENERATE_CALL))
        turn.record.note_start(embedding_ids)
        generation = await exits.enter_async_context(
            self._pair.llm.generate(fields, turn.request.name_field, key, turn.deadline)
        )
        wanted = {index: images[index] for index in generation.wanted}
        calling.set("image_count", len(images))
        calling.set("wanted_image_count", len(wanted))
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

        async def pipe(index: int, image: NamedImage) -> None:
            async with slots:
                await self._pipe(generation, index, image, turn)

        tasks = [asyncio.create_task(pipe(index, image)) for index, image in wanted.items()]
        with turn.record.piping(len(wanted)):
            async with owning(*tasks):
                await asyncio.gather(*tasks)
            await generation.end_images()

    async def _pipe(
        self, generation: Generation, index: int, image: NamedImage, turn: _Turn
    ) -> None:
        """Hands the pieces of an image's embedding on, from one service to the other."""
        encoding = replace(image.encoding, shared_memory=generation.shared_memory)
        pieces = self._pair.vision.encode_image(encoding, image.param_of, turn.deadline)
        with span("vision encode", "client", ENCODE_CALL, image_index=index) as calling:
            async with aclosing(pieces):
                async for piece in pieces:
                    if isinstance(piece, EmbeddingHeader):
                        image.encoding.file.let_go()  # from now on nobody is asked once more
                        turn.record.note_header(index, piece)
                        calling.event("header")
                        calling.set("tile_count", piece.tile_count)
                        calling.set("cache_hit", piece.cache_hit)
                    await generation.send(index, piece)
                    if isinstance(piece, EmbeddingTrailer):
                        turn.record.note_trailer(piece)
                        await generation.until_read(index)


async def _noted(
    generation: Generation, first: ChatEvent | None, record: RequestRecord, tally: TokenTally
) -> AsyncGenerator[ChatEvent, None]:
    event = first
    with record.timed("decode"):
        while event is not None:
            record.note_event(event)
            tally.note_event(event)
            if isinstance(event, Usage):
                _tell_usage(current_span(), event)
            yield event
            event = await generation.read()


def _tell_usage(calling: Span, usage: Usage) -> None:
    calling.set("prompt_token_count", usage.prompt_token_count)
    calling.set("image_token_count", usage.image_token_count)
    calling.set("cached_token_count", usage.cached_token_count)
    calling.set("output_token_count", usage.output_token_count)


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
