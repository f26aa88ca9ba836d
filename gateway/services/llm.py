"""Calls of the LLM service: a prompt and embeddings there, the events of an answer back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from gateway.events import ChatEvent
from gateway.services.channel import (
    LLM_SERVICE,
    FieldNamer,
    check_health,
    errors_of,
    seconds_until,
)
from gateway.services.messages import (
    EmbeddingPiece,
    chat_event,
    checkpoint_fingerprint,
    embedding_request,
    generate_start,
)
from protos.checkpoint.fingerprint import CheckpointFingerprint
from protos.errors import (
    ContextLengthError,
    ModelMismatchError,
    NotFoundError,
    ServiceError,
    UnavailableError,
)
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc
from protos.process.logs import request_metadata
from protos.transport import DEFAULT_MAX_MESSAGE_BYTE_COUNT, MESSAGE_OVERHEAD_BYTE_COUNT

# Of text, that is: images do not travel in the start message.
MAX_START_BYTE_COUNT = DEFAULT_MAX_MESSAGE_BYTE_COUNT - MESSAGE_OVERHEAD_BYTE_COUNT


@dataclass(frozen=True)
class ModelInfo:
    """What the LLM service runs; fields as in LLMServiceGetModelInfoResponse."""

    model: str
    aliases: tuple[str, ...]
    hidden_size: int
    max_context_token_count: int
    created_unix_seconds: int
    fingerprint_sha256: bytes
    checkpoint: CheckpointFingerprint

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the model, its own first."""
        return self.model, *self.aliases

    def serves(self, name: str) -> bool:
        """Whether a caller that says this name means this model; none stands for any."""
        return not name or name in self.names

    def check_serves(self, name: str) -> None:
        """Raises NotFoundError unless a caller that says this name means this model."""
        if not self.serves(name):
            raise NotFoundError(
                f"the model {name[:100]!r} does not exist; this server has"
                f" {' and '.join(map(repr, self.names))}",
                field="model",
            )


class LLMClient:
    """Calls the LLM service."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._stub = llm_pb2_grpc.LLMServiceStub(channel)
        self._info: ModelInfo | None = None

    async def check_health(self, seconds: float) -> None:
        """Raises UnavailableError or DeadlineError unless the service is SERVING."""
        await check_health(self._channel, LLM_SERVICE, "LLM", seconds)

    async def model_info(self, deadline: float) -> ModelInfo:
        """Returns what the service ran when it was last asked."""
        return self._info or await self.ask_model_info(deadline)

    async def ask_model_info(self, deadline: float) -> ModelInfo:
        """Returns what the service runs now."""
        with errors_of("LLM"):
            answer = await self._stub.GetModelInfo(
                llm_pb2.LLMServiceGetModelInfoRequest(),
                timeout=seconds_until(deadline),
                metadata=request_metadata(),
            )
        self._info = ModelInfo(
            answer.model,
            tuple(answer.aliases),
            answer.hidden_size,
            answer.max_context_token_count,
            answer.created_unix_seconds,
            answer.fingerprint_sha256,
            checkpoint_fingerprint(answer.checkpoint),
        )
        return self._info

    @asynccontextmanager
    async def generate(
        self, fields: Mapping[str, Any], name_field: FieldNamer, deadline: float
    ) -> AsyncIterator[Generation]:
        """Opens a generation, and cancels it when the block is left.

        Args:
            fields: what to generate: the values of GenerateStart's fields by their paths.
            name_field: what the caller calls such a field.
            deadline: when it must be over, in the event loop's time.

        Raises:
            ContextLengthError: the messages do not fit into one message to the service.
            UnavailableError: the service runs another checkpoint than the request expects.
        """
        start = generate_start(fields)
        if start.ByteSize() > MAX_START_BYTE_COUNT:
            raise ContextLengthError.of_prompt(
                f"its messages have {start.ByteSize()} bytes, and {MAX_START_BYTE_COUNT} may be"
                " sent",
                (await self.model_info(deadline)).max_context_token_count,
                field=name_field("chat.messages"),
            )
        call = self._stub.Generate(timeout=seconds_until(deadline), metadata=request_metadata())
        try:
            yield Generation(call, start, name_field)
        except UnavailableError:
            self._info = None  # it may come back with another model
            raise
        except ModelMismatchError as error:
            self._info = None
            raise UnavailableError(
                "the LLM service has changed its model; try again", retry_after=1
            ) from error
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
        name_field: FieldNamer,
    ) -> None:
        self._call = call
        self._start = start
        self._name_field = name_field
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
        await self._write(embedding_request(image_index, piece))

    async def end_images(self) -> None:
        """Says that all wanted images are sent."""
        with errors_of("LLM", self._name_field):
            await self._call.done_writing()

    async def read(self) -> ChatEvent | None:
        """Returns the next event; None after the last, which is the usage."""
        response = await self._read()
        if response is None:
            if not self._ended:
                raise ServiceError("the LLM service ended the answer too early")
            return None
        self._ended = response.HasField("usage")
        return chat_event(response)

    async def _read(self) -> llm_pb2.GenerateResponse | None:
        with errors_of("LLM", self._name_field):
            response = await self._call.read()
        return response if isinstance(response, llm_pb2.GenerateResponse) else None

    async def _write(self, message: llm_pb2.GenerateRequest) -> None:
        async with self._writing:
            with errors_of("LLM", self._name_field):
                try:
                    await self._call.write(message)
                except asyncio.InvalidStateError as error:  # the call is over: its status says why
                    await self._call.read()
                    raise ServiceError("the LLM service ended the call too early") from error
