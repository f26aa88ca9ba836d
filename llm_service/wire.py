"""The proto messages as this service's own types: every check that needs no engine, by field."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence

import torch

from llm_service.prompt import Message, Role
from llm_service.sampling import SamplingParams
from llm_service.tables import TableChunk, TableHeader, TableMessage, TableSpec, TableTrailer
from protos.errors import InvalidArgumentError, UnsupportedFieldError
from protos.internvl.v1 import llm_pb2, tensor_pb2

MAX_STOP_COUNT = 16
MAX_STOP_STRING_LENGTH = 256
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


def refuse_unsupported(start: llm_pb2.GenerateStart) -> None:
    """Refuses, by name, the fields of the contract that this service does not act on.

    Raises:
        UnsupportedFieldError: such a field is set.
    """
    unsupported = {
        "logprobs": start.HasField("logprobs"),
        "guided": start.HasField("guided"),
        "choice_count": start.HasField("choice_count") and start.choice_count != 1,
        "priority": start.HasField("priority") and start.priority != 0,
        "cache_salt": bool(start.cache_salt),
        "sampling.logit_bias": bool(start.sampling.logit_bias),
    }
    for field, is_set in unsupported.items():
        if is_set:
            raise UnsupportedFieldError(f"{field} is not supported by this service", field=field)


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
    """Returns what `sampling` and `stop` ask for; unset fields keep their defaults.

    Raises:
        InvalidArgumentError: a value is out of its range.
    """
    stop = start.stop
    _check_stop_count("token_ids", len(stop.token_ids))
    for index, token_id in enumerate(stop.token_ids):
        if not 0 <= token_id < vocabulary_size:
            raise InvalidArgumentError(
                f"token id {token_id} is not in 0..{vocabulary_size - 1}",
                field=f"stop.token_ids[{index}]",
            )
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
    )


def stop_strings(stop: llm_pb2.StopConditions) -> list[str]:
    """Returns the stop strings.

    Raises:
        InvalidArgumentError: too many, an empty one or one that is too long.
    """
    _check_stop_count("strings", len(stop.strings))
    for index, string in enumerate(stop.strings):
        if not 1 <= len(string) <= MAX_STOP_STRING_LENGTH:
            raise InvalidArgumentError(
                f"a stop string has 1 to {MAX_STOP_STRING_LENGTH} characters, not {len(string)}",
                field=f"stop.strings[{index}]",
            )
    return list(stop.strings)


def _check_stop_count(name: str, count: int) -> None:
    if count > MAX_STOP_COUNT:
        raise InvalidArgumentError(
            f"stop.{name} has {count} entries, at most {MAX_STOP_COUNT} are allowed",
            field=f"stop.{name}",
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
