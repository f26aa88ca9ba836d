"""The messages of both services: all that is built and read of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.events import ChatEvent, Finished, FinishReason, TextDelta, TokenLogprob, Usage
from protos.checkpoint.fingerprint import CheckpointFingerprint
from protos.errors import DataLossError
from protos.identity import EmbeddingId
from protos.internvl.v1 import checkpoint_pb2, llm_pb2, tensor_pb2, vision_pb2

FINISH_REASONS: dict[int, FinishReason] = {
    llm_pb2.FINISH_REASON_STOP: "stop",
    llm_pb2.FINISH_REASON_LENGTH: "length",
}


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
class EmbeddingChunk:
    """Bytes of an embedding from `offset` on."""

    offset: int
    data: bytes


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


EmbeddingPiece = EmbeddingHeader | EmbeddingChunk | EmbeddingTrailer


def embedding_piece(
    response: vision_pb2.EncodeImageResponse, wanted: EmbeddingId
) -> EmbeddingPiece:
    """Returns what a response of EncodeImage holds.

    Raises:
        DataLossError: a header names another embedding than the wanted one.
    """
    if response.HasField("embedding_chunk"):
        chunk = response.embedding_chunk
        return EmbeddingChunk(chunk.offset, chunk.data)
    if response.HasField("trailer"):
        return _trailer(response.trailer)
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


def _int32(number: int) -> int:
    return max(-(2**31), min(number, 2**31 - 1))


def encode_request(
    image: bytes | bytearray,
    max_tile_count: int | None,
    expected_recipe: bytes,
    max_queue_seconds: float,
) -> bytes:
    """Returns an EncodeImageRequest on the wire.

    The image is copied once. Setting it in the message, and serializing this, would copy it three
    times: 50 ms of the event loop for 20 MB.
    """
    options = vision_pb2.EncodeImageRequest(
        max_tile_count=max_tile_count,
        expected_recipe_sha256=expected_recipe,
        max_queue_seconds=max_queue_seconds,
    )
    number = vision_pb2.EncodeImageRequest.IMAGE_FIELD_NUMBER
    tag = number << 3 | 2  # a field whose length comes before it
    return b"".join((options.SerializeToString(), _varint(tag), _varint(len(image)), image))


def _varint(number: int) -> bytes:
    """Returns a number as protobuf writes it: seven bits a byte, the lowest first."""
    groups = []
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])


def generate_start(fields: Mapping[str, Any]) -> llm_pb2.GenerateStart:
    """Returns the message that has these values at these paths, e.g. 0.5 at "sampling.top_p"."""
    tree: dict[str, Any] = {}
    for path, value in fields.items():
        *branches, name = path.split(".")
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {})
        node[name] = value
    return llm_pb2.GenerateStart(**tree)


def embedding_request(image_index: int, piece: EmbeddingPiece) -> llm_pb2.GenerateRequest:
    """Returns the message that passes a piece of an image's embedding on."""
    # Filled in place: a message given to another's constructor is copied, at 1 ms for a chunk.
    request = llm_pb2.GenerateRequest()
    if isinstance(piece, EmbeddingHeader):
        request.embedding_header.image_index = image_index
        spec = request.embedding_header.spec
        spec.dtype, spec.byte_count = piece.dtype, piece.byte_count
        spec.shape.extend(piece.shape)
    elif isinstance(piece, EmbeddingChunk):
        chunk = request.embedding_chunk
        chunk.image_index, chunk.offset, chunk.data = image_index, piece.offset, piece.data
    else:
        request.embedding_trailer.image_index = image_index
        request.embedding_trailer.crc32 = piece.crc32
        request.embedding_trailer.signature = piece.signature
    return request


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
        )
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
