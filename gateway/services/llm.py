"""Calls of the LLM service: a prompt and embeddings there, the events of an answer back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import Message

from gateway.events import ChatEvent
from gateway.services.channel import (
    LLM_SERVICE,
    FieldNamer,
    ask,
    check_health,
    errors_of,
    have_done,
    seconds_until,
)
from gateway.services.messages import (
    EmbeddingPiece,
    chat_event,
    checkpoint_fingerprint,
    count_request,
    detokenize_request,
    embedding_request,
    generate_start,
    guide_request,
    is_shared,
)
from gateway.services.routing import Offer, Router
from protos.checkpoint.fingerprint import CheckpointFingerprint
from protos.errors import (
    ContextLengthError,
    NotFoundError,
    ServiceError,
    UnavailableError,
)
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc, tensor_pb2
from protos.process.logs import request_metadata
from protos.transport import DEFAULT_MAX_MESSAGE_BYTE_COUNT, MESSAGE_OVERHEAD_BYTE_COUNT
from protos.wire_format import serialized

UploadCall = grpc.aio.StreamStreamCall[llm_pb2.GenerateRequest | bytes, llm_pb2.GenerateResponse]
# It goes out at once with its only message, which saves its first token two turns of gRPC's thread.
TextCall = grpc.aio.UnaryStreamCall[llm_pb2.GenerateRequest, llm_pb2.GenerateResponse]
# Models of which replicas stand side by side while one takes another's place.
MAX_INFO_COUNT = 8
PROMPT_FIELDS = {"chat": "chat.messages", "text": "text", "token_ids": "token_ids.ids"}
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
    bos_token: str = ""
    eos_token: str = ""

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


@dataclass(frozen=True)
class Load:
    """How much a replica has to do; as GetLoadResponse has it, the KV cache as a share in use."""

    running_sequence_count: int
    waiting_sequence_count: int
    kv_cache_utilization: float
    backlog_seconds: float


@dataclass(frozen=True)
class TokenCount:
    """A prompt's tokens; fields as in CountTokensResponse."""

    prompt_token_count: int
    image_token_count: int
    token_ids: tuple[int, ...] = ()
    tokens: tuple[bytes, ...] = ()


class LLMClient:
    """Calls the LLM service."""

    def __init__(self, channel: grpc.aio.Channel, router: Router) -> None:
        self._channel = channel
        self._router = router
        self._stub = llm_pb2_grpc.LLMServiceStub(channel)
        # The stub's call takes no message that is bytes already.
        self._generate: grpc.aio.StreamStreamMultiCallable[
            llm_pb2.GenerateRequest | bytes, llm_pb2.GenerateResponse
        ] = channel.stream_stream(
            f"/{LLM_SERVICE}/Generate",
            request_serializer=serialized,
            response_deserializer=llm_pb2.GenerateResponse.FromString,
        )
        # On the wire that of one message is the same method.
        self._generate_text: grpc.aio.UnaryStreamMultiCallable[
            llm_pb2.GenerateRequest, llm_pb2.GenerateResponse
        ] = channel.unary_stream(
            f"/{LLM_SERVICE}/Generate",
            request_serializer=llm_pb2.GenerateRequest.SerializeToString,
            response_deserializer=llm_pb2.GenerateResponse.FromString,
        )
        self._infos: list[ModelInfo] = []  # of each checkpoint the latest, the latest one last

    async def check_health(self, seconds: float) -> None:
        """Raises UnavailableError or DeadlineError unless the service is SERVING."""
        await check_health(self._channel, LLM_SERVICE, "LLM", seconds)

    async def model_info(self, deadline: float, name: str = "") -> ModelInfo:
        """Returns what a replica ran when one was last asked, if possible one of this name."""
        for info in reversed(self._infos):
            if info.serves(name):
                return info
        return await self.ask_model_info(deadline)

    async def ask_model_info(self, deadline: float, key: str = "") -> ModelInfo:
        """Returns what a replica runs now: a key's, or any."""
        question = llm_pb2.LLMServiceGetModelInfoRequest()
        answer = await ask("LLM", self._stub.GetModelInfo, question, deadline, key)
        info = ModelInfo(
            answer.model,
            tuple(answer.aliases),
            answer.hidden_size,
            answer.max_context_token_count,
            answer.created_unix_seconds,
            answer.fingerprint_sha256,
            checkpoint_fingerprint(answer.checkpoint),
            answer.bos_token,
            answer.eos_token,
        )
        others = [one for one in self._infos if one.checkpoint != info.checkpoint]
        self._infos = [*others[-MAX_INFO_COUNT:], info]
        return info

    def forget(self, name: str) -> None:
        """Forgets what was served under a name."""
        self._infos = [info for info in self._infos if not info.serves(name)]

    async def ask_load(self, deadline: float, key: str = "") -> Load:
        """Returns how much a replica has to do: a key's, or any."""
        question = llm_pb2.GetLoadRequest()
        answer = await ask("LLM", self._stub.GetLoad, question, deadline, key)
        used_token_count = answer.total_kv_token_count - answer.free_kv_token_count
        return Load(
            answer.running_sequence_count,
            answer.waiting_sequence_count,
            used_token_count / max(1, answer.total_kv_token_count),
            answer.backlog_seconds,
        )

    async def count_tokens(
        self, fields: Mapping[str, Any], name_field: FieldNamer, deadline: float, key: str = ""
    ) -> TokenCount:
        """Returns a prompt's tokens.

        Args:
            fields: the values of CountTokensRequest's fields by their paths.
            name_field: what the caller calls such a field.
            deadline: when it must be over, in the event loop's time.
            key: leads to the replica that is asked first; without it any is.

        Raises:
            ContextLengthError: the prompt does not fit into one message to the service.
            ServiceError: what a replica answers, or that none does.
        """
        question = count_request(fields)
        await self._check_size(question, name_field(_prompt_field(question)), deadline)
        answer = await have_done("LLM", self._stub.CountTokens, question, name_field, deadline, key)
        return TokenCount(
            answer.prompt_token_count,
            answer.image_token_count,
            tuple(answer.token_ids),
            tuple(answer.tokens),
        )

    async def detokenize(
        self, token_ids: Sequence[int], name_field: FieldNamer, deadline: float, key: str = ""
    ) -> str:
        """Returns the text of token ids; other arguments and errors as of `count_tokens`."""
        question = detokenize_request(token_ids)
        answer = await have_done("LLM", self._stub.Detokenize, question, name_field, deadline, key)
        return answer.text

    async def check_guide(
        self, fields: Mapping[str, Any], name_field: FieldNamer, deadline: float, key: str = ""
    ) -> None:
        """Raises what a replica would refuse a request for that has these constraints.

        Args:
            fields: the values of GenerateStart's fields by their paths.
            name_field: what the caller calls such a field.
            deadline: when it must be over, in the event loop's time.
            key: leads to the replica that is asked first, and keeps what it has compiled.

        Raises:
            ContextLengthError: they do not fit into one message to the service.
            ServiceError: what a replica answers, or that none does.
        """
        question = guide_request(fields)
        await self._check_size(question, name_field("chat.tools"), deadline)
        await have_done("LLM", self._stub.CheckGuide, question, name_field, deadline, key)

    async def _check_size(self, message: Message, field: str, deadline: float) -> None:
        if (byte_count := message.ByteSize()) > MAX_START_BYTE_COUNT:
            raise ContextLengthError.of_prompt(
                f"it has {byte_count} bytes, and {MAX_START_BYTE_COUNT} may be sent",
                (await self.model_info(deadline)).max_context_token_count,
                field=field,
            )

    async def _backlog(self, deadline: float, key: str) -> float:
        return (await self.ask_load(deadline, key)).backlog_seconds

    @asynccontextmanager
    async def generate(
        self, fields: Mapping[str, Any], name_field: FieldNamer, key: str, deadline: float
    ) -> AsyncIterator[Generation]:
        """Begins a generation at a key's replica, or at another, and cancels it at the block's end.

        Args:
            fields: what to generate: the values of GenerateStart's fields by their paths.
            name_field: what the caller calls such a field.
            key: leads to the replica that is asked first.
            deadline: when it must be over, in the event loop's time.

        Raises:
            ContextLengthError: the messages do not fit into one message to the service.
            ModelMismatchError: the replica runs another checkpoint than the request expects.
            ServiceError: what a replica answers, and what `Router.offer` raises.
        """
        start = generate_start(fields)
        await self._check_size(start, name_field(_prompt_field(start)), deadline)

        async def begin(offer: Offer) -> Generation:
            start.max_queue_seconds = offer.max_queue_seconds
            metadata = (*offer.metadata, *request_metadata())
            seconds = seconds_until(deadline)
            if start.images:
                call = self._generate(timeout=seconds, metadata=metadata)
                return await Generation.begin(call, start, name_field)
            request = llm_pb2.GenerateRequest(start=start)
            text_call = self._generate_text(request, timeout=seconds, metadata=metadata)
            return await Generation.begin(text_call, start, name_field)

        try:
            generation = await self._router.offer(key, begin, partial(self._backlog, deadline))
            with closing(generation):
                yield generation
        except UnavailableError:
            self._infos.clear()  # it may come back with another model
            raise


def _prompt_field(message: llm_pb2.GenerateStart | llm_pb2.CountTokensRequest) -> str:
    return PROMPT_FIELDS[message.WhichOneof("prompt") or "chat"]


class Generation:
    """One Generate call: embeddings go up while events come down.

    Several tasks may send at once; one reads. All methods raise the ServiceError that the service
    answered with.

    Attributes:
        wanted: indexes of the images that the service wants to be sent.
        shared_memory: where it can read them instead; None: nowhere.
    """

    def __init__(self, call: UploadCall | TextCall, name_field: FieldNamer) -> None:
        self.wanted: list[int] = []
        self.shared_memory: tensor_pb2.SharedMemory | None = None
        self._unread: dict[int, asyncio.Event] = {}
        self._answers = False
        self._call = call
        self._name_field = name_field
        self._writing = asyncio.Lock()
        self._ended = False

    @classmethod
    async def begin(
        cls, call: UploadCall | TextCall, start: llm_pb2.GenerateStart, name_field: FieldNamer
    ) -> Generation:
        """Returns a generation whose service has said what it wants; or cancels the call."""
        generation = cls(call, name_field)
        try:
            await generation._start(start)
        except BaseException:
            generation.close()
            raise
        return generation

    def close(self) -> None:
        """Cancels the call, if it has not ended."""
        self._call.cancel()

    async def _start(self, start: llm_pb2.GenerateStart) -> None:
        if start.images:
            await self._write(llm_pb2.GenerateRequest(start=start))
        response = await self._read()
        if response is None or not response.HasField("wanted"):
            raise ServiceError("the LLM service did not say which images it wants")
        self.wanted = list(response.wanted.image_indexes)
        if response.wanted.HasField("shared_memory"):
            self.shared_memory = response.wanted.shared_memory
        if any(not 0 <= index < len(start.images) for index in self.wanted):
            raise ServiceError("the LLM service wants an image that the request does not have")

    async def send(self, image_index: int, piece: EmbeddingPiece) -> None:
        """Sends a piece of an image's embedding; returns once gRPC has taken it."""
        if is_shared(piece) and not self._answers:
            self._unread[image_index] = asyncio.Event()
        await self._write(embedding_request(image_index, piece))

    async def until_read(self, image_index: int) -> None:
        """Waits, where the embedding lies in shared memory, until the service has read it.

        It has when it says so, and when it answers.
        """
        if image_index in self._unread:
            await self._unread[image_index].wait()

    async def end_images(self) -> None:
        """Says that all wanted images are sent."""
        if isinstance(self._call, grpc.aio.StreamStreamCall):
            with errors_of("LLM", self._name_field):
                await self._call.done_writing()

    async def read(self) -> ChatEvent | None:
        """Returns the next event; None after the last, which is the usage."""
        response = await self._read()
        while response is not None and response.HasField("embedding_read"):
            self._note_read(response.embedding_read.image_index)
            response = await self._read()
        self._note_answer()
        if response is None:
            if not self._ended:
                raise ServiceError("the LLM service ended the answer too early")
            return None
        self._ended = response.HasField("usage")
        return chat_event(response)

    def _note_read(self, image_index: int) -> None:
        if image_index in self._unread:
            self._unread[image_index].set()

    def _note_answer(self) -> None:
        self._answers = True
        while self._unread:
            self._unread.popitem()[1].set()

    async def _read(self) -> llm_pb2.GenerateResponse | None:
        with errors_of("LLM", self._name_field):
            response = await self._call.read()
        return response if isinstance(response, llm_pb2.GenerateResponse) else None

    async def _write(self, message: llm_pb2.GenerateRequest | bytes) -> None:
        assert isinstance(self._call, grpc.aio.StreamStreamCall)
        async with self._writing:
            with errors_of("LLM", self._name_field):
                try:
                    await self._call.write(message)
                except asyncio.InvalidStateError as error:  # the call is over: its status says why
                    await self._call.read()
                    raise ServiceError("the LLM service ended the call too early") from error
