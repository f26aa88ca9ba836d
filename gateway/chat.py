"""The life of one chat request: images fetched and named, embeddings piped, events streamed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from gateway.clients import (
    ChatEvent,
    EmbeddingHeader,
    EmbeddingPiece,
    EncodeRequest,
    Generation,
    LLMClient,
    Usage,
    VisionClient,
    VisionInfo,
)
from gateway.images import ByteBudget, ImageFetcher
from gateway.schema import ChatCompletionRequest, ImageReference, ImageURL
from gateway.tasks import owning
from protos.errors import (
    DeadlineError,
    ImageTooLargeError,
    InvalidArgumentError,
    ModelMismatchError,
    NotFoundError,
    ServiceError,
    UnavailableError,
)
from protos.identity import EmbeddingId, content_digest, recipe_digest

# Of one request at a time; more would fill the vision service's queue for everybody else.
CONCURRENT_ENCODING_COUNT = 8


@dataclass
class RequestRecord:
    """What one request cost, for its line in the log. Durations in seconds, since its arrival."""

    arrival: float = field(default_factory=time.monotonic)
    image_count: int = 0
    encoded_image_count: int = 0
    encoded_tile_count: int = 0
    prompt_token_count: int | None = None
    output_token_count: int | None = None
    first_token_seconds: float | None = None
    error: str | None = None

    def elapsed(self) -> float:
        """Returns the seconds since the request's arrival."""
        return round(time.monotonic() - self.arrival, 6)


@dataclass(frozen=True)
class ChatLimits:
    """What one request may hold: images, and bytes of all its image files together."""

    max_image_count: int
    max_total_image_byte_count: int


@dataclass(frozen=True)
class NamedImage:
    """A fetched image file: where the request has it, and how to encode it."""

    param: str
    encoding: EncodeRequest


class ChatPipeline:
    """Turns chat requests into events, with the help of both services."""

    def __init__(
        self, fetcher: ImageFetcher, vision: VisionClient, llm: LLMClient, limits: ChatLimits
    ) -> None:
        self._fetcher = fetcher
        self._vision = vision
        self._llm = llm
        self._limits = limits

    async def stream(
        self, request: ChatCompletionRequest, deadline: float, record: RequestRecord
    ) -> AsyncGenerator[ChatEvent, None]:
        """Yields text deltas, the finish and the usage.

        Args:
            request: what to answer.
            deadline: when it must be over, in the event loop's time.
            record: filled on the way.

        Raises:
            ServiceError: with the JSON path of the field at fault.
        """
        try:
            await self._check_model(request.model, deadline)
            images = await self._named_images(request, deadline)
            record.image_count = len(images)
            ids = [image.encoding.id for image in images]
            async with self._llm.generate(request, ids, deadline) as generation:
                wanted = {index: images[index] for index in await generation.start()}
                event = await self._first_event(generation, wanted, deadline, record)
                record.first_token_seconds = record.elapsed()
                while event is not None:
                    _note(event, record)
                    yield event
                    event = await generation.read()
        except ServiceError as error:
            _speak_openai(error, request)
            raise

    async def _check_model(self, name: str, deadline: float) -> None:
        info = await self._llm.model_info(deadline)
        if info.model != name:  # perhaps it changed since we asked
            info = await self._llm.ask_model_info(deadline)
        if info.model != name:
            raise NotFoundError(
                f"the model {name[:100]!r} does not exist; this server has {info.model!r}",
                field="model",
            )

    async def _named_images(
        self, request: ChatCompletionRequest, deadline: float
    ) -> list[NamedImage]:
        references = list(request.images())
        if not references:
            return []
        if len(references) > self._limits.max_image_count:
            raise InvalidArgumentError(
                f"the request has {len(references)} images;"
                f" the limit is {self._limits.max_image_count}",
                field="messages",
            )
        info = await self._vision.model_info(deadline)
        budget = ByteBudget(self._limits.max_total_image_byte_count)
        tasks = [
            asyncio.create_task(self._named_image(reference, info, budget))
            for reference in references
        ]
        async with owning(*tasks):
            seconds = deadline - asyncio.get_running_loop().time()
            done, pending = await asyncio.wait(
                tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION
            )
            for task in done:
                task.result()
            if pending:
                raise DeadlineError("the images did not arrive within the request's time")
            return [task.result() for task in tasks]

    async def _named_image(
        self, reference: ImageReference, info: VisionInfo, budget: ByteBudget
    ) -> NamedImage:
        param = f"{reference.param}.url"
        image = await self._fetcher.fetch(reference.source.url, param, budget)
        if len(image) > info.max_image_byte_count:
            raise ImageTooLargeError(
                f"the image has {len(image)} bytes; the vision service's limit is"
                f" {info.max_image_byte_count}",
                field=param,
            )
        cap = _tile_cap(reference.source, info)
        recipe = recipe_digest(info.recipe_sha256, cap or info.default_tile_count)
        content = await asyncio.to_thread(content_digest, image)
        encoding = EncodeRequest(image, cap, info.recipe_sha256, EmbeddingId(content, recipe))
        return NamedImage(reference.param, encoding)

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
                        record.encoded_image_count += 1
                        record.encoded_tile_count += piece.tile_count
                    await generation.send(index, piece)

        tasks = [asyncio.create_task(pipe(index, image)) for index, image in wanted.items()]
        async with owning(*tasks):
            await asyncio.gather(*tasks)
        await generation.end_images()

    async def _encode(
        self, image: NamedImage, deadline: float
    ) -> AsyncGenerator[EmbeddingPiece, None]:
        try:
            async with aclosing(self._vision.encode_image(image.encoding, deadline)) as pieces:
                async for piece in pieces:
                    yield piece
        except ModelMismatchError as error:
            self._vision.forget_model_info()
            raise UnavailableError(
                "the vision service has changed its model; try again", retry_after=1
            ) from error
        except InvalidArgumentError as error:
            if error.field == "max_tile_count":
                error.message = error.message.replace(error.field, "max_dynamic_patch")
                error.field = f"{image.param}.max_dynamic_patch"
            else:
                error.field = f"{image.param}.url"
            raise


def _speak_openai(error: ServiceError, request: ChatCompletionRequest) -> None:
    """Makes field and sentence of an error name the request's JSON path, not the contract's."""
    param = request.param_of(error.field)
    if error.field and param:
        error.message = error.message.replace(error.field, param)
    error.field = param


def _tile_cap(source: ImageURL, info: VisionInfo) -> int | None:
    """Returns the tile cap that a request asks for; None for the vision service's default."""
    if source.max_dynamic_patch is not None:
        return source.max_dynamic_patch
    return {"low": 1, "high": info.max_tile_count}.get(source.detail or "auto")


def _note(event: ChatEvent, record: RequestRecord) -> None:
    if isinstance(event, Usage):
        record.prompt_token_count = event.prompt_token_count
        record.output_token_count = event.output_token_count
