"""The two services as the gateway calls them: all building and reading of their messages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Literal

import grpc
import structlog
from grpc_health.v1 import health_pb2

from gateway.schema import ChatCompletionRequest, Guide, Message
from protos.errors import (
    ContextLengthError,
    DataLossError,
    DeadlineError,
    EngineDeadError,
    ServiceError,
    UnavailableError,
)
from protos.identity import EmbeddingId
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc, tensor_pb2, vision_pb2, vision_pb2_grpc
from protos.process.logs import request_metadata
from protos.process.settings import MIB
from protos.status import from_rpc_error
from protos.transport import (
    DEFAULT_MAX_MESSAGE_BYTE_COUNT,
    KEEPALIVE_OPTIONS,
    MESSAGE_OVERHEAD_BYTE_COUNT,
)

logger = structlog.get_logger()

# Of text, that is: images do not travel in the start message.
MAX_START_BYTE_COUNT = DEFAULT_MAX_MESSAGE_BYTE_COUNT - MESSAGE_OVERHEAD_BYTE_COUNT
# What grpc.aio makes of a write into a call that ends at this very moment: its own words, in the
# place of the service's status.
BROKEN_WRITE = "Internal error from Core"
VISION_SERVICE = "internvl.v1.VisionService"
LLM_SERVICE = "internvl.v1.LLMService"
ROLES = {
    "system": llm_pb2.ROLE_SYSTEM,
    "developer": llm_pb2.ROLE_SYSTEM,
    "user": llm_pb2.ROLE_USER,
    "assistant": llm_pb2.ROLE_ASSISTANT,
}
FINISH_REASONS: dict[int, Literal["stop", "length"]] = {
    llm_pb2.FINISH_REASON_STOP: "stop",
    llm_pb2.FINISH_REASON_LENGTH: "length",
}
# gRPC tries again only while nothing has come back: an encoding that has sent its header, or a
# generation that has said which images it wants, is never repeated.
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": VISION_SERVICE}, {"service": LLM_SERVICE}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}
CHANNEL_OPTIONS = [
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    # An image file has to fit, or its call could not be tried again.
    ("grpc.per_rpc_retry_buffer_size", 32 * MIB),
    # gRPC would let the receive window grow with the bandwidth, to 10 MB an image and more.
    ("grpc.http2.bdp_probe", 0),
    # Proxies of the environment stand between us and the world, not between us and the services.
    ("grpc.enable_http_proxy", 0),
    # How soon a service that has restarted is found again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


@dataclass(frozen=True)
class VisionInfo:
    """What the vision service runs; fields as in VisionServiceGetModelInfoResponse."""

    recipe_sha256: bytes
    hidden_size: int
    default_tile_count: int
    max_tile_count: int
    max_image_byte_count: int


@dataclass(frozen=True)
class LLMInfo:
    """What the LLM service runs; fields as in LLMServiceGetModelInfoResponse."""

    model: str
    hidden_size: int
    max_context_token_count: int


@dataclass(frozen=True)
class EncodeRequest:
    """One image to encode: the file, its tile cap (None: the service's), and what must come back.

    `service_recipe` is the vision service's recipe_sha256 that `id` was derived from.
    """

    image: bytes
    max_tile_count: int | None
    service_recipe: bytes
    id: EmbeddingId


@dataclass(frozen=True)
class EmbeddingHeader:
    """Announces an embedding: dtype as in tensor.proto, shape [rows, hidden], size in bytes."""

    dtype: tensor_pb2.DataType.ValueType
    shape: tuple[int, ...]
    byte_count: int
    tile_count: int


@dataclass(frozen=True)
class EmbeddingChunk:
    """Bytes of an embedding from `offset` on."""

    offset: int
    data: bytes


@dataclass(frozen=True)
class EmbeddingTrailer:
    """Ends an embedding: CRC-32 of all its bytes."""

    crc32: int


EmbeddingPiece = EmbeddingHeader | EmbeddingChunk | EmbeddingTrailer


@dataclass(frozen=True)
class TokenLogprob:
    """A token's bytes and log probability; `top` is the most probable tokens' in its place."""

    token: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class TextDelta:
    """New text of one choice; may be empty. `logprobs` are of its new tokens, if asked for."""

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Finished:
    """Why one choice ended."""

    index: int
    reason: Literal["stop", "length"]


@dataclass(frozen=True)
class Usage:
    """Tokens of the prompt (of these: reused, and of images) and of the answer."""

    prompt_token_count: int
    output_token_count: int
    cached_token_count: int
    image_token_count: int


ChatEvent = TextDelta | Finished | Usage


def open_channel(address: str) -> grpc.aio.Channel:
    """Returns a channel to a service, balanced over all addresses of the name."""
    return grpc.aio.insecure_channel(address, options=[*KEEPALIVE_OPTIONS, *CHANNEL_OPTIONS])


def _seconds_until(deadline: float) -> float:
    return max(0.0, deadline - asyncio.get_running_loop().time())


@contextmanager
def _errors_of(service: str) -> Iterator[None]:
    """Raises failed calls as the ServiceError that they stand for; `service` is for people."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise _service_error(service, error) from error


def _service_error(service: str, error: grpc.aio.AioRpcError) -> ServiceError:
    failure = from_rpc_error(error)
    if isinstance(failure, EngineDeadError):
        return EngineDeadError(f"the engine of the {service} service failed", retry_after=1)
    broke_off = error.code() is grpc.StatusCode.CANCELLED or error.details() == BROKEN_WRITE
    if isinstance(failure, UnavailableError) or broke_off:
        # grpc's own text holds addresses: for the log, not for clients.
        logger.warning("unavailable", service=service, details=error.details())
        return UnavailableError(f"the {service} service is unavailable", retry_after=1)
    if isinstance(failure, DeadlineError):
        return DeadlineError(f"the {service} service did not end within the request's time")
    return failure


async def _check_health(channel: grpc.aio.Channel, name: str, service: str, seconds: float) -> None:
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    with _errors_of(service):
        answer = await check(health_pb2.HealthCheckRequest(service=name), timeout=seconds)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise UnavailableError(f"the {service} service is not serving", retry_after=1)


class VisionClient:
    """Calls the vision service."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._stub = vision_pb2_grpc.VisionServiceStub(channel)
        self._info: VisionInfo | None = None

    async def check_health(self, seconds: float) -> None:
        """Raises UnavailableError or DeadlineError unless the service is SERVING."""
        await _check_health(self._channel, VISION_SERVICE, "vision", seconds)

    async def model_info(self, deadline: float) -> VisionInfo:
        """Returns what the service runs, asked once until `forget_model_info`."""
        return self._info or await self.ask_model_info(deadline)

    async def ask_model_info(self, deadline: float) -> VisionInfo:
        """Returns what the service runs now."""
        with _errors_of("vision"):
            answer = await self._stub.GetModelInfo(
                vision_pb2.VisionServiceGetModelInfoRequest(),
                timeout=_seconds_until(deadline),
                metadata=request_metadata(),
            )
        self._info = VisionInfo(
            recipe_sha256=answer.recipe_sha256,
            hidden_size=answer.hidden_size,
            default_tile_count=answer.default_tile_count,
            max_tile_count=answer.max_tile_count,
            max_image_byte_count=answer.max_image_byte_count,
        )
        return self._info

    def forget_model_info(self) -> None:
        """Makes the next `model_info` ask: the service has another model now."""
        self._info = None

    async def encode_image(
        self, request: EncodeRequest, deadline: float
    ) -> AsyncGenerator[EmbeddingPiece, None]:
        """Yields the embedding's header, chunks and trailer as they come.

        Raises:
            ServiceError: the class that the service answered with.
            DataLossError: the service names the embedding otherwise than we do.
        """
        call = self._stub.EncodeImage(
            vision_pb2.EncodeImageRequest(
                image=request.image,
                max_tile_count=request.max_tile_count,
                expected_recipe_sha256=request.service_recipe,
            ),
            timeout=_seconds_until(deadline),
            metadata=request_metadata(),
        )
        try:
            with _errors_of("vision"):
                while isinstance(response := await call.read(), vision_pb2.EncodeImageResponse):
                    piece = _embedding_piece(response, request.id)
                    del response  # its bytes would stay in memory while the piece travels on
                    yield piece
        finally:
            call.cancel()


def _embedding_piece(
    response: vision_pb2.EncodeImageResponse, wanted: EmbeddingId
) -> EmbeddingPiece:
    if response.HasField("chunk"):
        return EmbeddingChunk(response.chunk.offset, response.chunk.data)
    if response.HasField("trailer"):
        return EmbeddingTrailer(response.trailer.crc32)
    header = response.header
    if EmbeddingId(header.id.content_sha256, header.id.recipe_sha256) != wanted:
        raise DataLossError("the vision service sent another embedding than was asked for")
    spec = header.spec
    return EmbeddingHeader(spec.dtype, tuple(spec.shape), spec.byte_count, header.tile_count)


class LLMClient:
    """Calls the LLM service."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._stub = llm_pb2_grpc.LLMServiceStub(channel)
        self._info: LLMInfo | None = None

    async def check_health(self, seconds: float) -> None:
        """Raises UnavailableError or DeadlineError unless the service is SERVING."""
        await _check_health(self._channel, LLM_SERVICE, "LLM", seconds)

    async def model_info(self, deadline: float) -> LLMInfo:
        """Returns what the service ran when it was last asked."""
        return self._info or await self.ask_model_info(deadline)

    async def ask_model_info(self, deadline: float) -> LLMInfo:
        """Returns what the service runs now."""
        with _errors_of("LLM"):
            answer = await self._stub.GetModelInfo(
                llm_pb2.LLMServiceGetModelInfoRequest(),
                timeout=_seconds_until(deadline),
                metadata=request_metadata(),
            )
        self._info = LLMInfo(answer.model, answer.hidden_size, answer.max_context_token_count)
        return self._info

    @asynccontextmanager
    async def generate(
        self, request: ChatCompletionRequest, images: Sequence[EmbeddingId], deadline: float
    ) -> AsyncIterator[Generation]:
        """Opens a generation, and cancels it when the block is left.

        Raises:
            ContextLengthError: the messages do not fit into one message to the service.
        """
        start = _start(request, images)
        call = self._stub.Generate(timeout=_seconds_until(deadline), metadata=request_metadata())
        try:
            yield Generation(call, start)
        except UnavailableError:
            self._info = None  # it may come back with another model
            raise
        finally:
            call.cancel()


class Generation:
    """One Generate call: embeddings go up while events come down.

    Several tasks may send at once; one reads. All methods raise the ServiceError that the service
    answered with.
    """

    def __init__(
        self,
        call: grpc.aio.StreamStreamCall[llm_pb2.GenerateRequest, llm_pb2.GenerateResponse],
        start: llm_pb2.GenerateStart,
    ) -> None:
        self._call = call
        self._start = start
        self._writing = asyncio.Lock()
        self._ended = False

    async def start(self) -> list[int]:
        """Begins, and returns the indexes of the images that the service wants to be sent."""
        await self._write(llm_pb2.GenerateRequest(start=self._start))
        response = await self._read()
        if response is None or not response.HasField("wanted"):
            raise ServiceError("the LLM service did not say which images it wants")
        wanted = list(response.wanted.image_indexes)
        if any(not 0 <= index < len(self._start.images) for index in wanted):
            raise ServiceError("the LLM service wants an image that the request does not have")
        return wanted

    async def send(self, image_index: int, piece: EmbeddingPiece) -> None:
        """Sends a piece of an image's embedding; returns once gRPC has taken it."""
        await self._write(_embedding_request(image_index, piece))

    async def end_images(self) -> None:
        """Says that all wanted images are sent."""
        with _errors_of("LLM"):
            await self._call.done_writing()

    async def read(self) -> ChatEvent | None:
        """Returns the next event; None after the last, which is the usage."""
        response = await self._read()
        if response is None:
            if not self._ended:
                raise ServiceError("the LLM service ended the answer too early")
            return None
        self._ended = response.HasField("usage")
        return _chat_event(response)

    async def _read(self) -> llm_pb2.GenerateResponse | None:
        with _errors_of("LLM"):
            response = await self._call.read()
        return response if isinstance(response, llm_pb2.GenerateResponse) else None

    async def _write(self, message: llm_pb2.GenerateRequest) -> None:
        async with self._writing:
            with _errors_of("LLM"):
                try:
                    await self._call.write(message)
                except asyncio.InvalidStateError as error:  # the call is over: its status says why
                    await self._call.read()
                    raise ServiceError("the LLM service ended the call too early") from error


def _start(request: ChatCompletionRequest, images: Sequence[EmbeddingId]) -> llm_pb2.GenerateStart:
    start = llm_pb2.GenerateStart(
        chat=llm_pb2.ChatPrompt(messages=[_message(message) for message in request.messages]),
        images=[_embedding_id(image) for image in images],
        sampling=_sampling(request),
        stop=_stop(request),
        logprobs=_logprobs(request),
        guided=_guided(request.guide) if request.guide else None,
        choice_count=request.n,
        # vLLM's priority, whose name it has, is the other way round: the lowest comes first.
        priority=None if request.priority is None else -request.priority,
        cache_salt=request.cache_salt,
        skip_special_tokens=request.skip_special_tokens,
    )
    if start.ByteSize() > MAX_START_BYTE_COUNT:
        raise ContextLengthError(
            f"the messages have {start.ByteSize()} bytes; the limit is {MAX_START_BYTE_COUNT}",
            field="messages",
        )
    return start


def _message(message: Message) -> llm_pb2.ChatMessage:
    parts = [
        llm_pb2.ContentPart(text=part.text)
        if part.text is not None
        else llm_pb2.ContentPart(image=llm_pb2.ImagePart())
        for part in message.content
    ]
    return llm_pb2.ChatMessage(role=ROLES[message.role], parts=parts)


def _embedding_id(image: EmbeddingId) -> tensor_pb2.EmbeddingId:
    return tensor_pb2.EmbeddingId(
        content_sha256=image.content_sha256, recipe_sha256=image.recipe_sha256
    )


def _sampling(request: ChatCompletionRequest) -> llm_pb2.SamplingParams:
    return llm_pb2.SamplingParams(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        seed=request.seed,
        repetition_penalty=request.repetition_penalty,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logit_bias=[
            llm_pb2.LogitBias(token_id=int(token_id), bias=bias)
            for token_id, bias in (request.logit_bias or {}).items()
        ],
    )


def _logprobs(request: ChatCompletionRequest) -> llm_pb2.LogprobOptions | None:
    return llm_pb2.LogprobOptions(top_count=request.top_logprobs or 0) if request.logprobs else None


def _guided(guide: Guide) -> llm_pb2.GuidedDecoding:
    match guide.kind:
        case "json_object":
            return llm_pb2.GuidedDecoding(json_object=llm_pb2.JSONObjectGuide())
        case "json_schema":
            return llm_pb2.GuidedDecoding(json_schema=guide.source)
        case "regex":
            return llm_pb2.GuidedDecoding(regex=guide.source)
        case "grammar":
            return llm_pb2.GuidedDecoding(grammar=guide.source)


def _stop(request: ChatCompletionRequest) -> llm_pb2.StopConditions:
    return llm_pb2.StopConditions(
        max_token_count=request.output_token_limit,
        min_token_count=request.min_tokens,
        strings=request.stop,
        token_ids=request.stop_token_ids,
        ignore_end_tokens=request.ignore_eos,
    )


def _embedding_request(image_index: int, piece: EmbeddingPiece) -> llm_pb2.GenerateRequest:
    # Filled in place: a message given to another's constructor is copied, at 1 ms for a chunk.
    request = llm_pb2.GenerateRequest()
    if isinstance(piece, EmbeddingHeader):
        request.embedding_header.image_index = image_index
        spec = request.embedding_header.spec
        spec.dtype, spec.byte_count = piece.dtype, piece.byte_count
        spec.shape.extend(piece.shape)
    elif isinstance(piece, EmbeddingChunk):
        request.embedding_chunk.image_index = image_index
        chunk = request.embedding_chunk.chunk
        chunk.offset, chunk.data = piece.offset, piece.data
    else:
        request.embedding_trailer.image_index = image_index
        request.embedding_trailer.crc32 = piece.crc32
    return request


def _chat_event(response: llm_pb2.GenerateResponse) -> ChatEvent:
    if response.HasField("delta"):
        delta = response.delta
        return TextDelta(delta.choice_index, delta.text, tuple(map(_logprob, delta.logprobs)))
    if response.HasField("finished"):
        finished = response.finished
        return Finished(finished.choice_index, FINISH_REASONS[finished.reason])
    usage = response.usage
    return Usage(
        prompt_token_count=usage.prompt_token_count,
        output_token_count=usage.output_token_count,
        cached_token_count=usage.cached_token_count,
        image_token_count=usage.image_token_count,
    )


def _logprob(logprob: llm_pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(logprob.token, logprob.logprob, tuple(map(_logprob, logprob.top)))
