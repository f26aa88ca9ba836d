"""The proto messages as this service's own types: every check that needs no engine, by field."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence

import torch

from llm_service.engines.base import TokenLogprob
from llm_service.prompt import Message, Role
from llm_service.sampling import Guide, SamplingParams
from llm_service.tables import TableChunk, TableHeader, TableMessage, TableSpec, TableTrailer
from llm_service.tokenizer import Tokenizer
from protos.errors import InvalidArgumentError
from protos.internvl.v1 import llm_pb2, tensor_pb2

MAX_STOP_COUNT = 16
MAX_STOP_STRING_LENGTH = 256
MAX_CHOICE_COUNT = 16
MAX_CACHE_SALT_LENGTH = 128
MAX_LOGIT_BIAS_COUNT = 1024
DIGEST_BYTE_COUNT = 32

DTYPES = {
    tensor_pb2.DATA_TYPE_BF16: torch.bfloat16,
    tensor_pb2.DATA_TYPE_FP16: torch.float16,
    tensor_pb2.DATA_TYPE_FP32: torch.float32,
}
ROLES = {
    llm_pb2.ROLE_SYSTEM: Role.SYSTEM,
    llm_pb2.ROLE_USER: Role.USER,
    llm_pb2.ROLE_ASSISTANT: Role.ASSISTANT,
}
FINISH_REASONS = {
    "stop": llm_pb2.FINISH_REASON_STOP,
    "length": llm_pb2.FINISH_REASON_LENGTH,
}


def chat_messages(chat: llm_pb2.ChatPrompt) -> list[Message]:
    """Returns the turns of a conversation.

    Raises:
        InvalidArgumentError: a role is unknown, or an image is in a turn that is not the user's.
    """
    return [_message(index, message) for index, message in enumerate(chat.messages)]


def _message(index: int, message: llm_pb2.ChatMessage) -> Message:
    role = ROLES.get(message.role)
    if role is None:
        raise InvalidArgumentError(
            f"role {message.role} is none of system, user, assistant",
            field=f"messages[{index}].role",
        )
    for position, part in enumerate(message.parts):
        if part.WhichOneof("part") is None:
            raise InvalidArgumentError(
                "the part holds neither text nor an image",
                field=f"messages[{index}].parts[{position}]",
            )
    texts = [part.text for part in message.parts if part.HasField("text")]
    image_count = sum(part.HasField("image") for part in message.parts)
    if image_count and role is not Role.USER:
        raise InvalidArgumentError(
            f"only a user message may hold images, this is the {role.value}'s",
            field=f"messages[{index}].parts",
        )
    return Message(role, "\n".join(texts), image_count)


def image_identities(images: Sequence[tensor_pb2.EmbeddingId], max_count: int) -> list[bytes]:
    """Returns each image's identity: content and recipe digest, 64 bytes.

    Raises:
        InvalidArgumentError: too many images, or a digest that is not 32 bytes.
    """
    if len(images) > max_count:
        raise InvalidArgumentError(
            f"the request has {len(images)} images, at most {max_count} are allowed", field="images"
        )
    for index, image in enumerate(images):
        for name in ("content_sha256", "recipe_sha256"):
            if (length := len(getattr(image, name))) != DIGEST_BYTE_COUNT:
                raise InvalidArgumentError(
                    f"{name} has {length} bytes, a SHA-256 has {DIGEST_BYTE_COUNT}",
                    field=f"images[{index}].{name}",
                )
    return [image.content_sha256 + image.recipe_sha256 for image in images]


def sampling_params(
    start: llm_pb2.GenerateStart, end_token_ids: Iterable[int], vocabulary_size: int
) -> SamplingParams:
    """Returns what `sampling`, `stop`, `logprobs` and `guided` ask for; unset fields keep defaults.

    Raises:
        InvalidArgumentError: a value is out of its range.
    """
    stop = start.stop
    _check_entry_count("stop.token_ids", len(stop.token_ids), MAX_STOP_COUNT)
    for index, token_id in enumerate(stop.token_ids):
        _check_token_id(f"stop.token_ids[{index}]", token_id, vocabulary_size)
    chosen = {
        descriptor.name: value
        for descriptor, value in start.sampling.ListFields()
        if descriptor.name != "logit_bias"
    }
    end_tokens = () if stop.ignore_end_tokens else end_token_ids
    return SamplingParams(
        **chosen,
        max_tokens=stop.max_token_count if stop.HasField("max_token_count") else None,
        min_tokens=stop.min_token_count,
        stop_token_ids=frozenset([*end_tokens, *stop.token_ids]),
        logit_bias=_logit_bias(start.sampling.logit_bias, vocabulary_size),
        logprob_count=start.logprobs.top_count if start.HasField("logprobs") else None,
        guide=_guide(start.guided) if start.HasField("guided") else None,
    )


def _logit_bias(
    entries: Sequence[llm_pb2.LogitBias], vocabulary_size: int
) -> tuple[tuple[int, float], ...]:
    _check_entry_count("sampling.logit_bias", len(entries), MAX_LOGIT_BIAS_COUNT)
    biases: dict[int, float] = {}
    for index, entry in enumerate(entries):
        field = f"sampling.logit_bias[{index}].token_id"
        _check_token_id(field, entry.token_id, vocabulary_size)
        if entry.token_id in biases:
            raise InvalidArgumentError(f"token id {entry.token_id} has a bias already", field=field)
        biases[entry.token_id] = entry.bias
    return tuple(biases.items())


def _guide(guided: llm_pb2.GuidedDecoding) -> Guide:
    match guided.WhichOneof("guide"):
        case "json_object":
            return Guide("json_object")
        case "json_schema" | "regex" | "grammar" as kind:
            return Guide(kind, getattr(guided, kind))
    raise InvalidArgumentError(
        "one of json_object, json_schema, regex, grammar must be set", field="guided"
    )


def choice_count(start: llm_pb2.GenerateStart) -> int:
    """Returns how many choices to generate.

    Raises:
        InvalidArgumentError: none, or too many.
    """
    count = start.choice_count if start.HasField("choice_count") else 1
    if not 1 <= count <= MAX_CHOICE_COUNT:
        raise InvalidArgumentError(
            f"choice_count is {count}, not in 1..{MAX_CHOICE_COUNT}", field="choice_count"
        )
    return count


def cache_salt(start: llm_pb2.GenerateStart) -> str:
    """Returns what separates the request's KV cache from others'; empty if nothing does.

    Raises:
        InvalidArgumentError: it is too long.
    """
    if (length := len(start.cache_salt)) > MAX_CACHE_SALT_LENGTH:
        raise InvalidArgumentError(
            f"cache_salt has {length} characters, at most {MAX_CACHE_SALT_LENGTH} are allowed",
            field="cache_salt",
        )
    return start.cache_salt


def stop_strings(stop: llm_pb2.StopConditions) -> list[str]:
    """Returns the stop strings.

    Raises:
        InvalidArgumentError: too many, an empty one or one that is too long.
    """
    _check_entry_count("stop.strings", len(stop.strings), MAX_STOP_COUNT)
    for index, string in enumerate(stop.strings):
        if not 1 <= len(string) <= MAX_STOP_STRING_LENGTH:
            raise InvalidArgumentError(
                f"a stop string has 1 to {MAX_STOP_STRING_LENGTH} characters, not {len(string)}",
                field=f"stop.strings[{index}]",
            )
    return list(stop.strings)


def _check_entry_count(field: str, count: int, limit: int) -> None:
    if count > limit:
        raise InvalidArgumentError(
            f"{field} has {count} entries, at most {limit} are allowed", field=field
        )


def _check_token_id(field: str, token_id: int, vocabulary_size: int) -> None:
    if not 0 <= token_id < vocabulary_size:
        raise InvalidArgumentError(
            f"token id {token_id} is not in 0..{vocabulary_size - 1}", field=field
        )


def token_logprob(logprob: TokenLogprob, tokenizer: Tokenizer) -> llm_pb2.TokenLogprob:
    """Returns a token's log probability as its message, and those of its alternatives."""
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


async def table_messages(
    requests: AsyncIterator[llm_pb2.GenerateRequest],
) -> AsyncGenerator[TableMessage, None]:
    """Yields what follows `start`, as announced; nothing of it is checked yet.

    Raises:
        InvalidArgumentError: a message that is no part of an embedding.
    """
    async for request in requests:
        yield _table_message(request)


def _table_message(request: llm_pb2.GenerateRequest) -> TableMessage:
    match request.WhichOneof("message"):
        case "embedding_header":
            header = request.embedding_header
            spec = header.spec
            announced = TableSpec(DTYPES.get(spec.dtype), tuple(spec.shape), spec.byte_count)
            return TableHeader(header.image_index, announced)
        case "embedding_chunk":
            chunk = request.embedding_chunk
            return TableChunk(chunk.image_index, chunk.chunk.offset, chunk.chunk.data)
        case "embedding_trailer":
            trailer = request.embedding_trailer
            return TableTrailer(trailer.image_index, trailer.crc32)
        case other:
            raise InvalidArgumentError(
                f"after start come embeddings, not {other or 'an empty message'}",
                field=other or "message",
            )
