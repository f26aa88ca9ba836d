"""The messages of both services: all that is built and read of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.events import (
    ChatEvent,
    EngineTimings,
    Finished,
    FinishReason,
    PromptLogprobs,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from protos.checkpoint.fingerprint import CheckpointFingerprint
from protos.errors import DataLossError, ServiceError
from protos.identity import EmbeddingId
from protos.internvl.v1 import checkpoint_pb2, llm_pb2, tensor_pb2, vision_pb2
from protos.wire_format import field_head, field_tag

FINISH_REASONS: dict[int, FinishReason] = {
    llm_pb2.FINISH_REASON_STOP: "stop",
    llm_pb2.FINISH_REASON_LENGTH: "length",
}
# How messages begin that both services have alike: one passes them on to the other, unread.
CHUNK = field_tag(vision_pb2.EncodeImageResponse.EMBEDDING_CHUNK_FIELD_NUMBER)
SHARED = field_tag(vision_pb2.EncodeImageResponse.SHARED_EMBEDDING_FIELD_NUMBER)


@dataclass(frozen=True)
class EmbeddingHeader:
    """Announces an embedding: dtype as in tensor.proto, shape [rows, hidden], size in bytes.

    The other fields are as in EncodeImageHeader.
    """

    dtype: tensor_pb2.DataType.ValueType
    shape: tuple[int, ...]
    byte_count: int
    tile_count: int
    grid_column_count: int
    grid_row_count: int
    image_width: int
    image_height: int
    cache_hit: bool


@dataclass(frozen=True)
class EncodeTimings:
    """Where the time of an encode went; fields as in EncodeTimings of the contract."""

    preprocess_seconds: float = 0.0
    queue_seconds: float = 0.0
    forward_seconds: float = 0.0

    @property
    def total_seconds(self) -> float:
        """All of it; 0 of an image that was in the cache."""
        return self.preprocess_seconds + self.queue_seconds + self.forward_seconds


@dataclass(frozen=True)
class EmbeddingTrailer:
    """Ends an embedding: CRC-32 of all its bytes, the signature for the LLM service, the times."""

    crc32: int
    signature: bytes
    timings: EncodeTimings


# The bytes are a message to the LLM service as it is.
EmbeddingPiece = EmbeddingHeader | bytes | EmbeddingTrailer


def encode_response(message: bytes) -> vision_pb2.EncodeImageResponse | bytes:
    """Returns a response of EncodeImage; one that is passed on as it came."""
    if message.startswith((CHUNK, SHARED)):
        return message
    return vision_pb2.EncodeImageResponse.FromString(message)


def embedding_piece(
    response: vision_pb2.EncodeImageResponse | bytes, wanted: EmbeddingId
) -> EmbeddingPiece:
    """Returns what a response of EncodeImage holds.

    Raises:
        DataLossError: a header names another embedding than the wanted one.
        ServiceError: it holds nothing that is known here.
    """
    if isinstance(response, bytes):
        return response
    if response.HasField("trailer"):
        return _trailer(response.trailer)
    if not response.HasField("header"):
        raise ServiceError("the vision service speaks another version of the contract")
    header = response.header
    if EmbeddingId(header.id.content_sha256, header.id.recipe_sha256) != wanted:
        raise DataLossError("the vision service sent another embedding than was asked for")
    spec = header.spec
    return EmbeddingHeader(
        dtype=spec.dtype,
        shape=tuple(spec.shape),
        byte_count=spec.byte_count,
        tile_count=header.tile_count,
        grid_column_count=header.grid_column_count,
        grid_row_count=header.grid_row_count,
        image_width=header.image_width,
        image_height=header.image_height,
        cache_hit=header.cache_hit,
    )


def is_shared(piece: EmbeddingPiece) -> bool:
    """Says whether a piece tells where in shared memory the embedding lies until its call ends."""
    return isinstance(piece, bytes) and piece.startswith(SHARED)


def _trailer(trailer: vision_pb2.EncodeImageTrailer) -> EmbeddingTrailer:
    times = trailer.timings
    timings = EncodeTimings(times.preprocess_seconds, times.queue_seconds, times.forward_seconds)
    return EmbeddingTrailer(trailer.crc32, trailer.signature, timings)


def checkpoint_fingerprint(
    message: checkpoint_pb2.CheckpointFingerprint,
) -> CheckpointFingerprint:
    """Returns which checkpoint a service says that it runs; of an older one no part is known."""
    return CheckpointFingerprint(
        config_sha256=message.config_sha256,
        projector_sha256=message.projector_sha256,
        language_model_sha256=message.language_model_sha256,
    )


def plan_request(
    width: int, height: int, max_tile_count: int | None, expected_recipe: bytes
) -> vision_pb2.PlanTilesRequest:
    """Returns the question how an image of this size would be cut.

    A number beyond the contract's becomes its largest or smallest: the service refuses it all the
    same.
    """
    return vision_pb2.PlanTilesRequest(
        image_width=_int32(width),
        image_height=_int32(height),
        max_tile_count=None if max_tile_count is None else _int32(max_tile_count),
        expected_recipe_sha256=expected_recipe,
    )


def plan_file_request(
    image: bytes | bytearray, max_tile_count: int | None, expected_recipe: bytes
) -> bytes:
    """Returns the question how an image file would be cut, on the wire; it is copied once."""
    options = vision_pb2.PlanTilesRequest(
        max_tile_count=max_tile_count, expected_recipe_sha256=expected_recipe
    )
    head = field_head(vision_pb2.PlanTilesRequest.IMAGE_FIELD_NUMBER, len(image))
    return b"".join((options.SerializeToString(), head, image))


def _int32(number: int) -> int:
    return max(-(2**31), min(number, 2**31 - 1))


def encode_request(
    image: bytes | bytearray,
    max_tile_count: int | None,
    expected_recipe: bytes,
    max_queue_seconds: float,
    image_index: int,
    shared_memory: tensor_pb2.SharedMemory | None,
) -> bytes:
    """Returns an EncodeImageRequest on the wire.

    The image is copied once. Setting it in the message, and serializing this, would copy it three
    times: 50 ms of the event loop for 20 MB.
    """
    options = vision_pb2.EncodeImageRequest(
        max_tile_count=max_tile_count,
        expected_recipe_sha256=expected_recipe,
        max_queue_seconds=max_queue_seconds,
        image_index=image_index,
        shared_memory=shared_memory,
    )
    head = field_head(vision_pb2.EncodeImageRequest.IMAGE_FIELD_NUMBER, len(image))
    return b"".join((options.SerializeToString(), head, image))


def generate_start(fields: Mapping[str, Any]) -> llm_pb2.GenerateStart:
    """Returns the message that has these values at these paths, e.g. 0.5 at "sampling.top_p"."""
    return llm_pb2.GenerateStart(**_tree(fields))


def count_request(fields: Mapping[str, Any]) -> llm_pb2.CountTokensRequest:
    """Returns the message that has these values at these paths."""
    return llm_pb2.CountTokensRequest(**_tree(fields))


def detokenize_request(token_ids: Sequence[int]) -> llm_pb2.DetokenizeRequest:
    """Returns the question for the text of token ids.

    A number beyond the contract's becomes its largest or smallest, as of `plan_request`.
    """
    ids = llm_pb2.TokenIds(ids=map(_int32, token_ids))
    return llm_pb2.DetokenizeRequest(token_ids=ids)


def guide_request(fields: Mapping[str, Any]) -> llm_pb2.CheckGuideRequest:
    """Returns the question whether output can be constrained as these values at these paths say.

    Paths are those of GenerateStart; what neither constrains nor is a tool is left out.
    """
    start = _tree(fields)
    tools = start.get("chat", {}).get("tools", ())
    return llm_pb2.CheckGuideRequest(guided=start["guided"], tools=tools)


def _tree(fields: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in fields.items():
        *branches, name = path.split(".")
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {})
        node[name] = value
    return tree


def embedding_request(image_index: int, piece: EmbeddingPiece) -> llm_pb2.GenerateRequest | bytes:
    """Returns the message that passes a piece of an image's embedding on."""
    if isinstance(piece, bytes):
        return piece
    if isinstance(piece, EmbeddingTrailer):
        trailer = llm_pb2.EmbeddingTrailer(
            image_index=image_index, crc32=piece.crc32, signature=piece.signature
        )
        return llm_pb2.GenerateRequest(embedding_trailer=trailer)
    spec = tensor_pb2.TensorSpec(dtype=piece.dtype, shape=piece.shape, byte_count=piece.byte_count)
    header = llm_pb2.EmbeddingHeader(image_index=image_index, spec=spec)
    return llm_pb2.GenerateRequest(embedding_header=header)


def chat_event(response: llm_pb2.GenerateResponse) -> ChatEvent:
    """Returns what a response of Generate tells, other than the wanted images."""
    if response.HasField("delta"):
        delta = response.delta
        return TextDelta(
            delta.choice_index,
            delta.text,
            tuple(map(_logprob, delta.logprobs)),
            len(delta.token_ids),
            delta.prompt_token_count if delta.HasField("prompt_token_count") else None,
            tuple(map(_tool_call, delta.tool_calls)) if delta.tool_calls else (),
        )
    if response.HasField("finished"):
        finished = response.finished
        stop_string = finished.stop_string if finished.HasField("stop_string") else None
        return Finished(finished.choice_index, FINISH_REASONS[finished.reason], stop_string)
    if response.HasField("prompt_logprobs"):
        return PromptLogprobs(tuple(map(_logprob, response.prompt_logprobs.tokens)))
    usage = response.usage
    return Usage(
        prompt_token_count=usage.prompt_token_count,
        output_token_count=usage.output_token_count,
        cached_token_count=usage.cached_token_count,
        image_token_count=usage.image_token_count,
        timings=_engine_timings(usage),
    )


def _engine_timings(usage: llm_pb2.Usage) -> EngineTimings | None:
    if not usage.HasField("queue_seconds"):
        return None
    return EngineTimings(usage.queue_seconds, usage.prefill_seconds)


def _tool_call(delta: llm_pb2.ToolCallDelta) -> ToolCallDelta:
    return ToolCallDelta(delta.call_index, delta.name, delta.arguments)


def _logprob(logprob: llm_pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(logprob.token, logprob.logprob, tuple(map(_logprob, logprob.top)))
