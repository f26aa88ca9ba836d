"""The proto messages of LLMService as this service's own types, both ways.

Reading a message makes every check that needs neither tokenizer nor engine. A refusal's field is
its path in the contract: in GenerateStart or CountTokensRequest, and for a later message of the
stream in GenerateRequest.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass

import torch
from google.protobuf import message as protobuf

from llm_service.choices import PromptLogprobs, TextDelta, TextEnd
from llm_service.conversation import Ending, Message, Role
from llm_service.engines.base import TokenLogprob
from llm_service.generator import (
    EmbeddingRead,
    Event,
    Generation,
    Load,
    TokenCount,
    Usage,
    Wanted,
)
from llm_service.limits import check_count, check_length, check_token_id
from llm_service.model import ModelInfo
from llm_service.pieces import PLACEHOLDER, ImagePart
from llm_service.prompt import ChatPrompt, PromptSource, TextPrompt, TokenPrompt
from llm_service.sampling import OutputGuide, SamplingParams
from llm_service.tables import (
    SharedTable,
    TableChunk,
    TableHeader,
    TableMessage,
    TableSpec,
    TableTrailer,
)
from llm_service.tokenizer import Tokenizer
from llm_service.tools.base import ToolCall
from llm_service.wire_guides import guide, tool_definitions
from protos.checkpoint.fingerprint import CheckpointFingerprint
from protos.errors import ContextLengthError, InvalidArgumentError, ModelMismatchError
from protos.identity import EmbeddingId
from protos.internvl.v1 import checkpoint_pb2, llm_pb2, tensor_pb2
from protos.process.backlog import checked_bound
from protos.process.logs import MAX_REQUEST_ID_LENGTH
from protos.process.shared_memory import Slot
from protos.transport import DEFAULT_MAX_MESSAGE_BYTE_COUNT
from protos.wire_format import read_chunk

MAX_STOP_COUNT = 16
MAX_STOP_STRING_LENGTH = 256
MAX_CHOICE_COUNT = 16
MAX_CACHE_SALT_LENGTH = 128
MAX_LOGIT_BIAS_COUNT = 1024
# Each costs the tokenizer a call, however short it is.
MAX_MESSAGE_COUNT = 2048
MAX_TOOL_CALL_COUNT = 2048
DIGEST_BYTE_COUNT = 32
# English has about 4, Chinese 5; only runs of spaces come near this.
MAX_BYTES_PER_TOKEN = 16

DTYPES = {
    tensor_pb2.DATA_TYPE_BF16: torch.bfloat16,
    tensor_pb2.DATA_TYPE_FP16: torch.float16,
    tensor_pb2.DATA_TYPE_FP32: torch.float32,
}
ROLES = {
    llm_pb2.ROLE_SYSTEM: Role.SYSTEM,
    llm_pb2.ROLE_USER: Role.USER,
    llm_pb2.ROLE_ASSISTANT: Role.ASSISTANT,
    llm_pb2.ROLE_TOOL: Role.TOOL,
}
ENDINGS = {
    llm_pb2.CHAT_ENDING_UNSPECIFIED: None,
    llm_pb2.CHAT_ENDING_NEW_TURN: Ending.NEW_TURN,
    llm_pb2.CHAT_ENDING_CONTINUED: Ending.CONTINUED,
    llm_pb2.CHAT_ENDING_CLOSED: Ending.CLOSED,
}
# Whether there must be a call.
FINISH_REASONS = {
    "stop": llm_pb2.FINISH_REASON_STOP,
    "length": llm_pb2.FINISH_REASON_LENGTH,
}


PromptMessage = llm_pb2.GenerateStart | llm_pb2.CountTokensRequest


@dataclass(frozen=True)
class Opening:
    """What a call begins with, and its bytes on the wire, which would take long to count anew."""

    start: llm_pb2.GenerateStart
    byte_count: int


# Chunks are read without protobuf, which would copy them.
ReadRequest = Opening | llm_pb2.GenerateRequest | TableChunk


def read_request(message: bytes) -> ReadRequest:
    """Returns a GenerateRequest; raises DecodeError unless the message is one."""
    if (chunk := read_chunk(message)) is not None:
        return TableChunk(*chunk)
    request = llm_pb2.GenerateRequest.FromString(message)
    return Opening(request.start, len(message)) if request.HasField("start") else request


def opening(request: ReadRequest | None) -> Opening:
    """Returns the first message of a stream, None if it has none, as what a call begins with.

    Raises:
        InvalidArgumentError: it is another message, or its request id is too long.
    """
    if not isinstance(request, Opening):
        raise InvalidArgumentError("a stream's first message must start a request", field="start")
    check_length("request_id", "the request id", request.start.request_id, MAX_REQUEST_ID_LENGTH)
    return request


def generation(
    opening: Opening, info: ModelInfo, arrival: float, deadline: float | None
) -> Generation:
    """Returns what a request asks for; unset fields take their defaults.

    Args:
        opening: its first message.
        info: what the service runs.
        arrival: when that had been read, on the clock of `time.monotonic`.
        deadline: when the call must be over; None: whenever.

    Raises:
        InvalidArgumentError: a field is malformed or out of its range.
        ContextLengthError: the prompt has more bytes than any that fits.
        ModelMismatchError: the checkpoint that the request expects is another one.
    """
    start = opening.start
    _check_checkpoint(start, info)
    embedding_ids = _embedding_ids(start.images, info.max_image_count)
    params = _sampling_params(start, info)
    check_length("cache_salt", "the cache salt", start.cache_salt, MAX_CACHE_SALT_LENGTH)
    skip_special_tokens = start.skip_special_tokens
    return Generation(
        prompt=prompt_source(start, info),
        byte_count=opening.byte_count,
        embedding_ids=embedding_ids,
        params=params,
        stop_strings=_stop_strings(start.stop),
        skip_special_tokens=skip_special_tokens or not start.HasField("skip_special_tokens"),
        choice_count=_choice_count(start),
        priority=_priority(start, info),
        cache_salt=start.cache_salt,
        arrival=arrival,
        deadline=deadline,
        max_queue_seconds=_max_queue_seconds(start),
    )


def _check_checkpoint(start: llm_pb2.GenerateStart, info: ModelInfo) -> None:
    expected = start.expected_checkpoint  # without any part, when unset, which fits every other
    differences = info.checkpoint.differences(
        CheckpointFingerprint(
            config_sha256=expected.config_sha256,
            projector_sha256=expected.projector_sha256,
            language_model_sha256=expected.language_model_sha256,
        )
    )
    if differences:
        raise ModelMismatchError(
            f"this service serves {info.model}; the expected checkpoint differs from it in"
            f" {', '.join(differences.values())}",
            field=f"expected_checkpoint.{next(iter(differences))}",
        )


def prompt_source(message: PromptMessage, info: ModelInfo) -> PromptSource:
    """Returns the prompt of a request.

    Raises:
        InvalidArgumentError: there is none, a role or ending is unknown, an image is in a turn
            that is not the user's or a tool's call in one that is not the assistant's, or there
            are too many of them or of messages.
        ContextLengthError: it has more bytes than any prompt that fits.
    """
    match message.WhichOneof("prompt"):
        case "chat":
            _check_size("chat.messages", message.chat.ByteSize(), info)
            return _chat_prompt(message.chat, info.max_image_count)
        case "text":
            _check_size("text", len(message.text.encode()), info)
            return _text_prompt(message, info.max_image_count)
        case "token_ids":
            _check_size("token_ids.ids", message.token_ids.ByteSize(), info)
            return TokenPrompt(message.token_ids.ids)
    raise InvalidArgumentError(
        "the request has no prompt; it must have messages, a text or token ids", field="prompt"
    )


def _check_size(field: str, byte_count: int, info: ModelInfo) -> None:
    """Refuses what cannot fit before seconds are spent on tokenizing it."""
    limit = MAX_BYTES_PER_TOKEN * info.max_context_token_count
    if byte_count > limit:
        raise ContextLengthError.of_prompt(
            f"it has {byte_count} bytes, and at most {limit} may fit",
            info.max_context_token_count,
            field=field,
        )


def _text_prompt(message: PromptMessage, max_image_count: int) -> TextPrompt:
    if isinstance(message, llm_pb2.GenerateStart):
        has_images, has_beginning = bool(message.images), True
    else:
        has_images = bool(message.image_row_counts)
        has_beginning = not message.omit_beginning_token
    if has_images:
        check_count("text", "images", message.text.count(PLACEHOLDER), max_image_count)
    return TextPrompt(message.text, has_images, has_beginning)


def _chat_prompt(chat: llm_pb2.ChatPrompt, max_image_count: int) -> ChatPrompt:
    field = "chat.messages"
    check_count(field, "messages", len(chat.messages), MAX_MESSAGE_COUNT)
    messages = [_message(index, message) for index, message in enumerate(chat.messages)]
    image_count = sum(message.image_count for message in messages)
    check_count(field, "images", image_count, max_image_count)
    call_count = sum(len(message.tool_calls) for message in messages)
    check_count(field, "calls of tools", call_count, MAX_TOOL_CALL_COUNT)
    if chat.ending not in ENDINGS:
        raise InvalidArgumentError(
            f"the conversation's ending is {chat.ending}; it must be a new turn (1), continued (2)"
            " or closed (3)",
            field="chat.ending",
        )
    return ChatPrompt(messages, ENDINGS[chat.ending], tool_definitions(chat.tools))


def _message(index: int, sent: llm_pb2.ChatMessage) -> Message:
    field = f"chat.messages[{index}]"
    role = ROLES.get(sent.role)
    if role is None:
        raise InvalidArgumentError(
            f"a message's role is {sent.role}; it must be system, user, assistant or tool",
            field=f"{field}.role",
        )
    parts = [_part(f"{field}.parts[{i}]", part) for i, part in enumerate(sent.parts)]
    calls = [ToolCall(call.name, call.arguments) for call in sent.tool_calls]
    message = Message(role, tuple(parts), tuple(calls))
    if (count := message.image_count) and role is not Role.USER:
        raise InvalidArgumentError(
            f"a message of the {role.value} has {count} images; only a user's may have any:"
            " show them in one",
            field=f"{field}.parts",
        )
    if calls and role is not Role.ASSISTANT:
        raise InvalidArgumentError(
            f"a message of the {role.value} calls {len(calls)} tools; only the assistant's may",
            field=f"{field}.tool_calls",
        )
    return message


def _part(field: str, part: llm_pb2.ContentPart) -> str | ImagePart:
    match part.WhichOneof("part"):
        case "text":
            return part.text
        case "image":
            return ImagePart()
    raise InvalidArgumentError("a part of a message holds neither text nor an image", field=field)


def image_row_counts(request: llm_pb2.CountTokensRequest, info: ModelInfo) -> list[int]:
    """Returns the rows of each image's embedding.

    Raises:
        InvalidArgumentError: there are too many, or an image has no rows, or more than the context
            takes.
    """
    count = len(request.image_row_counts)
    check_count("image_row_counts", "images", count, info.max_image_count)
    for index, row_count in enumerate(request.image_row_counts):
        if not 1 <= row_count <= info.max_context_token_count:
            raise InvalidArgumentError(
                f"an image has {row_count} rows; it must have 1 to {info.max_context_token_count}",
                field=f"image_row_counts[{index}]",
            )
    return list(request.image_row_counts)


def detokenized_ids(request: llm_pb2.DetokenizeRequest, info: ModelInfo) -> Sequence[int]:
    """Returns the token ids whose text is wanted.

    Raises:
        InvalidArgumentError: there are more than the context takes, or one does not exist.
    """
    field, ids = "token_ids.ids", request.token_ids.ids
    check_count(field, "token ids", len(ids), info.max_context_token_count)
    for index, token_id in enumerate(ids):
        check_token_id(f"{field}[{index}]", token_id, info.config.vocabulary_size)
    return ids


def checked_guide(request: llm_pb2.CheckGuideRequest, info: ModelInfo) -> OutputGuide | None:
    """Returns the guide that is to be checked; None where there is none.

    Raises:
        InvalidArgumentError: as of `guide` and `tool_definitions`.
    """
    tool_definitions(request.tools)
    return guide(request.guided, request.tools, info) if request.HasField("guided") else None


def _embedding_ids(images: Sequence[tensor_pb2.EmbeddingId], max_count: int) -> list[EmbeddingId]:
    check_count("images", "images", len(images), max_count)
    for index, image in enumerate(images):
        for name in ("content_sha256", "recipe_sha256"):
            if (length := len(getattr(image, name))) != DIGEST_BYTE_COUNT:
                raise InvalidArgumentError(
                    f"an image's digest has {length} bytes; a SHA-256 has {DIGEST_BYTE_COUNT}",
                    field=f"images[{index}].{name}",
                )
    return [EmbeddingId(image.content_sha256, image.recipe_sha256) for image in images]


def _sampling_params(start: llm_pb2.GenerateStart, info: ModelInfo) -> SamplingParams:
    stop = start.stop
    tools = start.chat.tools
    vocabulary_size = info.config.vocabulary_size
    check_count("stop.token_ids", "stop tokens", len(stop.token_ids), MAX_STOP_COUNT)
    for index, token_id in enumerate(stop.token_ids):
        check_token_id(f"stop.token_ids[{index}]", token_id, vocabulary_size)
    chosen = {
        descriptor.name: value
        for descriptor, value in start.sampling.ListFields()
        if descriptor.name != "logit_bias"
    }
    end_token_ids = () if stop.ignore_end_tokens else info.end_token_ids
    return SamplingParams(
        **chosen,
        max_tokens=stop.max_token_count if stop.HasField("max_token_count") else None,
        min_tokens=stop.min_token_count,
        stop_token_ids=frozenset([*end_token_ids, *stop.token_ids]),
        logit_bias=_logit_bias(start.sampling.logit_bias, vocabulary_size),
        logprob_count=start.logprobs.top_count if start.HasField("logprobs") else None,
        wants_prompt_logprobs=_wants_prompt_logprobs(start),
        guide=guide(start.guided, tools, info) if start.HasField("guided") else None,
    )


def _wants_prompt_logprobs(start: llm_pb2.GenerateStart) -> bool:
    if start.logprobs.prompt and start.images:
        raise InvalidArgumentError(
            f"the request has {len(start.images)} images; log probabilities are those of a prompt"
            " without any",
            field="logprobs.prompt",
        )
    return start.logprobs.prompt


def _logit_bias(
    entries: Sequence[llm_pb2.LogitBias], vocabulary_size: int
) -> tuple[tuple[int, float], ...]:
    check_count("sampling.logit_bias", "biased tokens", len(entries), MAX_LOGIT_BIAS_COUNT)
    biases: dict[int, float] = {}
    for index, entry in enumerate(entries):
        field = f"sampling.logit_bias[{index}].token_id"
        check_token_id(field, entry.token_id, vocabulary_size)
        if entry.token_id in biases:
            raise InvalidArgumentError(f"token {entry.token_id} has a bias already", field=field)
        biases[entry.token_id] = entry.bias
    return tuple(biases.items())


def _choice_count(start: llm_pb2.GenerateStart) -> int:
    count = start.choice_count if start.HasField("choice_count") else 1
    if not 1 <= count <= MAX_CHOICE_COUNT:
        raise InvalidArgumentError(
            f"the request asks for {count} choices; it must ask for 1 to {MAX_CHOICE_COUNT}",
            field="choice_count",
        )
    return count


def _max_queue_seconds(start: llm_pb2.GenerateStart) -> float | None:
    return checked_bound(start.max_queue_seconds) if start.HasField("max_queue_seconds") else None


def _priority(start: llm_pb2.GenerateStart, info: ModelInfo) -> int:
    if start.priority and not info.allows_priority:
        raise InvalidArgumentError(
            "a priority other than 0 is for services that are started with --allow-priority",
            field="priority",
        )
    return start.priority


def _stop_strings(stop: llm_pb2.StopConditions) -> list[str]:
    check_count("stop.strings", "stop strings", len(stop.strings), MAX_STOP_COUNT)
    for index, string in enumerate(stop.strings):
        if not 1 <= len(string) <= MAX_STOP_STRING_LENGTH:
            raise InvalidArgumentError(
                f"a stop string has {len(string)} characters; it must have 1 to"
                f" {MAX_STOP_STRING_LENGTH}",
                field=f"stop.strings[{index}]",
            )
    return list(stop.strings)


async def table_messages(
    requests: AsyncIterator[ReadRequest],
) -> AsyncGenerator[TableMessage, None]:
    """Yields what follows the start of a request, as announced; nothing of it is checked yet.

    Raises:
        InvalidArgumentError: a message that is no part of an embedding.
    """
    async for request in requests:
        if isinstance(request, Opening):
            raise _stray("start", "another start")
        yield request if isinstance(request, TableChunk) else _table_message(request)


def _table_message(request: llm_pb2.GenerateRequest) -> TableMessage:
    match request.WhichOneof("message"):
        case "embedding_header":
            header = request.embedding_header
            spec = header.spec
            announced = TableSpec(DTYPES.get(spec.dtype), tuple(spec.shape), spec.byte_count)
            return TableHeader(header.image_index, announced)
        case "embedding_chunk":
            chunk = request.embedding_chunk
            return TableChunk(chunk.image_index, chunk.offset, memoryview(chunk.data))
        case "shared_embedding":
            shared = request.shared_embedding
            slot = Slot(shared.file, shared.offset, shared.nonce)
            return SharedTable(shared.image_index, slot)
        case "embedding_trailer":
            trailer = request.embedding_trailer
            return TableTrailer(trailer.image_index, trailer.crc32, trailer.signature)
        case other:
            raise _stray(other or "message", "a message unknown here")


def _stray(field: str, what: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"a request's start is followed by embeddings alone, not by {what}", field=field
    )


def response(event: Event, tokenizer: Tokenizer) -> llm_pb2.GenerateResponse:
    """Returns the message that tells of an event."""
    match event:
        case Wanted():
            return llm_pb2.GenerateResponse(wanted=_wanted(event))
        case EmbeddingRead(image_index):
            read = llm_pb2.EmbeddingRead(image_index=image_index)
            return llm_pb2.GenerateResponse(embedding_read=read)
        case Usage():
            return llm_pb2.GenerateResponse(usage=llm_pb2.Usage(**vars(event)))
        case (_, PromptLogprobs(tokens)):
            part = llm_pb2.PromptLogprobs(tokens=[_token_logprob(it, tokenizer) for it in tokens])
            return llm_pb2.GenerateResponse(prompt_logprobs=part)
        case (index, TextDelta() as delta):
            return llm_pb2.GenerateResponse(delta=_token_delta(index, delta, tokenizer))
        case (index, TextEnd() as end):
            return llm_pb2.GenerateResponse(finished=_finished(index, end))


def _wanted(wanted: Wanted) -> llm_pb2.WantedImages:
    message = llm_pb2.WantedImages(image_indexes=wanted.image_indexes)
    if wanted.marker is not None:
        message.shared_memory.file = wanted.marker.file
        message.shared_memory.nonce = wanted.marker.nonce
    return message


def _token_delta(index: int, delta: TextDelta, tokenizer: Tokenizer) -> llm_pb2.TokenDelta:
    return llm_pb2.TokenDelta(
        choice_index=index,
        text=delta.text,
        token_ids=delta.token_ids,
        logprobs=[_token_logprob(logprob, tokenizer) for logprob in delta.logprobs],
        prompt_token_count=delta.prompt_token_count,
        tool_calls=[llm_pb2.ToolCallDelta(**vars(piece)) for piece in delta.tool_calls],
    )


def _finished(index: int, end: TextEnd) -> llm_pb2.Finished:
    reason = FINISH_REASONS[end.reason]
    return llm_pb2.Finished(choice_index=index, reason=reason, stop_string=end.stop_string)


def _token_logprob(logprob: TokenLogprob, tokenizer: Tokenizer) -> llm_pb2.TokenLogprob:
    top = [
        llm_pb2.TokenLogprob(
            token_id=token_id, logprob=value, token=tokenizer.token_bytes(token_id)
        )
        for token_id, value in logprob.top
    ]
    return llm_pb2.TokenLogprob(
        token_id=logprob.token_id,
        logprob=logprob.logprob,
        token=tokenizer.token_bytes(logprob.token_id),
        top=top,
    )


def count_response(count: TokenCount, tokenizer: Tokenizer) -> llm_pb2.CountTokensResponse:
    """Returns a prompt's tokens as their message; InvalidArgumentError if that is too large."""
    response = llm_pb2.CountTokensResponse(
        prompt_token_count=count.prompt_token_count,
        image_token_count=count.image_token_count,
        token_ids=count.token_ids,
        tokens=map(tokenizer.token_bytes, count.token_ids),
    )
    _check_sendable(response, "return_tokens")
    return response


def detokenize_response(text: str) -> llm_pb2.DetokenizeResponse:
    """Returns a text as its message; InvalidArgumentError if that is too large."""
    response = llm_pb2.DetokenizeResponse(text=text)
    _check_sendable(response, "token_ids.ids")
    return response


def _check_sendable(response: protobuf.Message, field: str) -> None:
    if (byte_count := response.ByteSize()) > DEFAULT_MAX_MESSAGE_BYTE_COUNT:
        raise InvalidArgumentError(
            f"the answer has {byte_count} bytes, and at most {DEFAULT_MAX_MESSAGE_BYTE_COUNT} may"
            " be sent; ask for a part of it",
            field=field,
        )


def model_info_response(info: ModelInfo) -> llm_pb2.LLMServiceGetModelInfoResponse:
    """Returns what the service tells of itself."""
    return llm_pb2.LLMServiceGetModelInfoResponse(
        model=info.model,
        engine=info.engine,
        hidden_size=info.config.hidden_size,
        vocabulary_size=info.config.vocabulary_size,
        max_context_token_count=info.max_context_token_count,
        max_image_count=info.max_image_count,
        fingerprint_sha256=info.fingerprint,
        aliases=info.aliases,
        created_unix_seconds=info.created_unix_seconds,
        checkpoint=checkpoint_pb2.CheckpointFingerprint(**vars(info.checkpoint)),
        bos_token=info.tokenizer.named.get("bos_token", ""),
        eos_token=info.tokenizer.named.get("eos_token", ""),
    )


def load_response(load: Load) -> llm_pb2.GetLoadResponse:
    """Returns the service's load as its message."""
    engine = load.engine
    return llm_pb2.GetLoadResponse(
        running_sequence_count=engine.running_sequence_count,
        waiting_sequence_count=engine.waiting_sequence_count,
        free_kv_token_count=engine.free_kv_token_count,
        total_kv_token_count=engine.total_kv_token_count,
        backlog_seconds=load.backlog_seconds,
    )
