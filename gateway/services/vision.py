"""Calls of the vision service: an image file there, the pieces of its embedding back."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from gateway.memory import HeldFile
from gateway.services.channel import (
    NO_ANSWER,
    VISION_SERVICE,
    FieldNamer,
    ask,
    check_health,
    errors_of,
    have_done,
    seconds_until,
)
from gateway.services.messages import (
    EmbeddingPiece,
    EmbeddingTrailer,
    checkpoint_fingerprint,
    embedding_piece,
    encode_request,
    encode_response,
    is_shared,
    plan_file_request,
    plan_request,
)
from gateway.services.routing import SEARCH_COUNT, Offer, Router, note_retry, salted
from protos.checkpoint.fingerprint import CheckpointFingerprint
from protos.errors import ModelMismatchError, ServiceError
from protos.identity import EmbeddingId
from protos.internvl.v1 import tensor_pb2, vision_pb2, vision_pb2_grpc
from protos.process.logs import request_metadata

EncodeCall = grpc.aio.UnaryStreamCall[
    "tuple[EncodeRequest, float]", vision_pb2.EncodeImageResponse | bytes
]


@dataclass(frozen=True)
class ModelInfo:
    """What the vision service runs; fields as in VisionServiceGetModelInfoResponse."""

    model: str
    checkpoint: CheckpointFingerprint
    recipe_sha256: bytes
    hidden_size: int
    tokens_per_tile: int
    tile_size: int
    default_tile_count: int
    max_tile_count: int
    max_image_byte_count: int


@dataclass(frozen=True)
class Load:
    """How much a replica has to do; fields as in VisionServiceGetLoadResponse."""

    waiting_tile_count: float
    backlog_seconds: float


@dataclass(frozen=True)
class TilePlan:
    """How an image would be cut; fields as in PlanTilesResponse."""

    grid_column_count: int
    grid_row_count: int
    tile_count: int
    token_count: int


@dataclass(frozen=True)
class EncodeRequest:
    """One image to encode, and the embedding that must come back.

    Attributes:
        file: the encoded file, held until an embedding comes back.
        max_tile_count: its tile cap; None for the service's default.
        service_recipe: the vision service's recipe_sha256, which `embedding_id` was derived from.
        embedding_id: names the embedding.
        image_index: which of a chat request's images it is, for the LLM service.
        shared_memory: where that can read the embedding if the vision service sees it too.
    """

    file: HeldFile
    max_tile_count: int | None
    service_recipe: bytes
    embedding_id: EmbeddingId
    image_index: int
    shared_memory: tensor_pb2.SharedMemory | None = None


@dataclass(frozen=True)
class FileToPlan:
    """An image of which the tiles are to be told; the attributes are those of EncodeRequest."""

    file: HeldFile
    max_tile_count: int | None
    service_recipe: bytes


PlanAnswer = vision_pb2.PlanTilesResponse
PlanMethod = grpc.aio.UnaryUnaryMultiCallable[FileToPlan, PlanAnswer]


class VisionClient:
    """Calls the vision service."""

    def __init__(self, channel: grpc.aio.Channel, router: Router) -> None:
        self._channel = channel
        self._router = router
        self._stub = vision_pb2_grpc.VisionServiceStub(channel)
        # The stub's call would hold the message as long as it lives.
        self._encode_image = channel.unary_stream(
            f"/{VISION_SERVICE}/EncodeImage",
            request_serializer=_serialized,
            response_deserializer=encode_response,
        )
        # Nor does the stub's take a file that is copied only when it is sent.
        self._plan_tiles: PlanMethod = channel.unary_unary(
            f"/{VISION_SERVICE}/PlanTiles",
            request_serializer=_serialized_plan,
            response_deserializer=vision_pb2.PlanTilesResponse.FromString,
        )
        self._sending = asyncio.Lock()

    async def check_health(self, seconds: float) -> None:
        """Raises UnavailableError or DeadlineError unless the service is SERVING."""
        await check_health(self._channel, VISION_SERVICE, "vision", seconds)

    async def ask_model_info(self, deadline: float, key: str = "") -> ModelInfo:
        """Returns what a replica runs now: a key's, or any."""
        question = vision_pb2.VisionServiceGetModelInfoRequest()
        answer = await ask("vision", self._stub.GetModelInfo, question, deadline, key)
        return ModelInfo(
            model=answer.model,
            checkpoint=checkpoint_fingerprint(answer.checkpoint),
            recipe_sha256=answer.recipe_sha256,
            hidden_size=answer.hidden_size,
            tokens_per_tile=answer.tokens_per_tile,
            tile_size=answer.tile_size,
            default_tile_count=answer.default_tile_count,
            max_tile_count=answer.max_tile_count,
            max_image_byte_count=answer.max_image_byte_count,
        )

    async def ask_load(self, deadline: float, key: str = "") -> Load:
        """Returns how much a replica has to do: a key's, or any."""
        question = vision_pb2.VisionServiceGetLoadRequest()
        answer = await ask("vision", self._stub.GetLoad, question, deadline, key)
        return Load(answer.waiting_tile_count, answer.backlog_seconds)

    async def plan_tiles(
        self, width: int, height: int, max_tile_count: int | None, recipe: bytes, deadline: float
    ) -> TilePlan:
        """Returns how a replica of this recipe would cut an image of this size.

        Args:
            width, height: of the upright image, in pixels.
            max_tile_count: its tile cap; None for the service's default.
            recipe: recipe_sha256 of the service's model.
            deadline: when it must be over, in the event loop's time.

        Raises:
            ServiceError: its `field` is image_width, image_height or max_tile_count.
            ModelMismatchError: no replica was found that encodes by the recipe.
        """
        question = plan_request(width, height, max_tile_count, recipe)
        plan = partial(ask, "vision", self._stub.PlanTiles, question, deadline)
        return await self._planned(plan, recipe, deadline)

    async def plan_tiles_of_file(
        self,
        file: HeldFile,
        max_tile_count: int | None,
        recipe: bytes,
        name_field: FieldNamer,
        deadline: float,
    ) -> TilePlan:
        """Returns how a replica of this recipe would cut the image of a file, which it looks into.

        Args:
            file: the encoded file, held until there is an answer.
            max_tile_count: its tile cap; None for the service's default.
            recipe: recipe_sha256 of the service's model.
            name_field: what the caller calls a field of PlanTilesRequest.
            deadline: when it must be over, in the event loop's time.

        Raises:
            ServiceError: as of `encode_image`.
            ModelMismatchError: no replica was found that encodes by the recipe.
        """
        question = FileToPlan(file, max_tile_count, recipe)
        plan = partial(have_done, "vision", self._plan_file, question, name_field, deadline)
        return await self._planned(plan, recipe, deadline)

    async def _plan_file(self, question: FileToPlan, **options: Any) -> PlanAnswer:
        async with self._sending_file():
            call = self._plan_tiles(question, **options)
        return await call

    async def _planned(
        self, plan: Callable[..., Awaitable[PlanAnswer]], recipe: bytes, deadline: float
    ) -> TilePlan:
        """Asks anybody, and where that is one of another recipe, one of this."""
        try:
            answer = await plan()
        except ModelMismatchError:
            key = secrets.token_hex(4)
            answer = await plan(await self._key_of_recipe(recipe, key, deadline))
        return TilePlan(
            answer.grid_column_count,
            answer.grid_row_count,
            answer.tile_count,
            answer.token_count,
        )

    async def encode_image(
        self, request: EncodeRequest, name_field: FieldNamer, deadline: float
    ) -> AsyncGenerator[EmbeddingPiece, None]:
        """Yields the embedding's header, its chunks or their place, and its trailer as they come.

        In shared memory the rows lie until the generator is asked for more.

        Args:
            request: the image, whose content leads to the replica that is asked first.
            name_field: what the caller calls a field of EncodeImageRequest.
            deadline: when it must be over, in the event loop's time.

        Raises:
            ServiceError: the class that the service answered with, and what `Router.offer` raises.
            ModelMismatchError: no replica was found that encodes by the request's recipe.
            DataLossError: the service names the embedding otherwise than we do.
        """
        begin = partial(self._begin, request, name_field, deadline)
        ask_backlog = partial(self._backlog, deadline)
        key = request.embedding_id.content_sha256.hex()
        try:
            header, call = await self._router.offer(key, begin, ask_backlog)
        except ModelMismatchError as error:
            note_retry(error, attempt=2)
            fitting = await self._key_of_recipe(request.service_recipe, key, deadline)
            header, call = await self._router.offer(fitting, begin, ask_backlog)
        try:
            is_lent = False
            with errors_of("vision", name_field):
                async with aclosing(_pieces(call, request, header)) as pieces:
                    async for piece in pieces:
                        yield piece
                        is_lent = is_lent or is_shared(piece)
                if not is_lent:  # or the service would wait for us to end the call
                    await call.code()
        finally:
            call.cancel()

    async def _begin(
        self, request: EncodeRequest, name_field: FieldNamer, deadline: float, offer: Offer
    ) -> tuple[EmbeddingPiece, EncodeCall]:
        """Returns the first piece of an embedding, and the call that gives the others."""
        call = await self._send(request, deadline, offer)
        try:
            with errors_of("vision", name_field):
                header = await _read(call, request)
        except BaseException:
            call.cancel()
            raise
        return header, call

    async def _send(self, request: EncodeRequest, deadline: float, offer: Offer) -> EncodeCall:
        async with self._sending_file():
            return self._encode_image(
                (request, offer.max_queue_seconds),
                timeout=seconds_until(deadline),
                metadata=(*offer.metadata, *request_metadata()),
            )

    @asynccontextmanager
    async def _sending_file(self) -> AsyncIterator[None]:
        """Lets one file at a time be sent in its block: gRPC copies them in the event loop."""
        await self._sending.acquire()
        try:
            yield
        finally:  # once the call's task, which is in the queue by now, has copied the file
            asyncio.get_running_loop().call_soon(self._sending.release)

    async def _backlog(self, deadline: float, key: str) -> float:
        return (await self.ask_load(deadline, key)).backlog_seconds

    async def _key_of_recipe(self, recipe: bytes, key: str, deadline: float) -> str:
        """Returns a salted key that leads to a replica with this recipe."""
        for number in range(1, SEARCH_COUNT):
            with suppress(*NO_ANSWER):
                info = await self.ask_model_info(deadline, found := salted(key, number))
                if info.recipe_sha256 == recipe:
                    return found
        raise ModelMismatchError("no replica of the vision service encodes by this recipe any more")


def _serialized_plan(sent: FileToPlan) -> bytes:
    return plan_file_request(sent.file.content, sent.max_tile_count, sent.service_recipe)


def _serialized(sent: tuple[EncodeRequest, float]) -> bytes:
    request, max_queue_seconds = sent
    return encode_request(
        request.file.content,
        request.max_tile_count,
        request.service_recipe,
        max_queue_seconds,
        request.image_index,
        request.shared_memory,
    )


async def _pieces(
    call: EncodeCall, request: EncodeRequest, header: EmbeddingPiece
) -> AsyncGenerator[EmbeddingPiece, None]:
    """Yields all pieces up to the trailer; the next one comes while one is used."""
    piece = header
    while not isinstance(piece, EmbeddingTrailer):
        reading = asyncio.create_task(_read(call, request))
        try:
            yield piece
            piece = await reading
        except BaseException:  # nobody wants more
            call.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            raise
    yield piece


async def _read(call: EncodeCall, request: EncodeRequest) -> EmbeddingPiece:
    """Returns the next piece. No message stays in memory while it travels."""
    response = await call.read()
    if not isinstance(response, vision_pb2.EncodeImageResponse | bytes):
        raise ServiceError("the vision service ended the call before an embedding was complete")
    return embedding_piece(response, request.embedding_id)
