"""The messages of VisionService: requests read, responses built."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractAsyncContextManager

import torch

from protos.internvl.v1 import checkpoint_pb2, tensor_pb2, vision_pb2
from protos.process.backlog import Backlog, checked_bound
from protos.process.call_record import call_record
from protos.process.shared_memory import Marker, Slot
from protos.transport import CHUNK_BYTE_COUNT
from protos.wire_format import chunk_message
from vision_service.embedding import ImageEmbedding, Timings, tensor_bytes
from vision_service.encoder import EncodedImage, ImageRequest, ModelInfo, PlanRequest, TilePlan

# How long a slot is lent to a caller that does not end its call.
LEASE_SECONDS = 60.0
DATA_TYPES = {
    torch.bfloat16: tensor_pb2.DATA_TYPE_BF16,
    torch.float16: tensor_pb2.DATA_TYPE_FP16,
    torch.float32: tensor_pb2.DATA_TYPE_FP32,
}


def read_request(message: vision_pb2.EncodeImageRequest) -> ImageRequest:
    """Returns what EncodeImage is asked for.

    Raises:
        InvalidArgumentError: the longest wait is no time.
    """
    has_cap = message.HasField("max_tile_count")
    has_recipe = message.HasField("expected_recipe_sha256")
    has_bound = message.HasField("max_queue_seconds")
    return ImageRequest(
        image=message.image,
        tile_cap=message.max_tile_count if has_cap else None,
        expected_recipe_sha256=message.expected_recipe_sha256 if has_recipe else None,
        max_queue_seconds=checked_bound(message.max_queue_seconds) if has_bound else None,
    )


def read_marker(message: vision_pb2.EncodeImageRequest) -> Marker:
    """Returns what is to show that the reader of the embedding sees the same memory."""
    return Marker(message.shared_memory.file, message.shared_memory.nonce)


def read_plan_request(message: vision_pb2.PlanTilesRequest) -> PlanRequest:
    """Returns what PlanTiles is asked for."""
    has_cap = message.HasField("max_tile_count")
    has_recipe = message.HasField("expected_recipe_sha256")
    return PlanRequest(
        image_width=message.image_width,
        image_height=message.image_height,
        image=message.image,
        tile_cap=message.max_tile_count if has_cap else None,
        expected_recipe_sha256=message.expected_recipe_sha256 if has_recipe else None,
    )


def plan_response(plan: TilePlan) -> vision_pb2.PlanTilesResponse:
    """Returns what PlanTiles tells."""
    return vision_pb2.PlanTilesResponse(
        grid_column_count=plan.grid.column_count,
        grid_row_count=plan.grid.row_count,
        tile_count=plan.grid.tile_count,
        token_count=plan.token_count,
    )


async def encode_responses(
    encoded: EncodedImage,
    image_index: int,
    lending: AbstractAsyncContextManager[Slot | None],
) -> AsyncGenerator[vision_pb2.EncodeImageResponse | bytes, None]:
    """Yields one header, the rows, and one trailer; it does not end while a slot is needed.

    Args:
        encoded: what is sent.
        image_index: what chunks of the rows, or the place where they lie, say as their image.
        lending: what yields the slot that holds the rows, or None: they go in chunks.
    """
    yield vision_pb2.EncodeImageResponse(header=_header(encoded))
    async with lending as slot:
        if slot is None:
            for chunk in _chunks(encoded.embedding, image_index):
                yield chunk
        else:
            yield _place(slot, image_index)
        trailer = await _trailer(encoded)
        call_record().is_answered = True
        yield vision_pb2.EncodeImageResponse(trailer=trailer)
        if slot is not None:
            await asyncio.sleep(LEASE_SECONDS)  # until the caller ends the call


def model_info_response(info: ModelInfo) -> vision_pb2.VisionServiceGetModelInfoResponse:
    """Returns what GetModelInfo tells."""
    return vision_pb2.VisionServiceGetModelInfoResponse(
        model=info.model,
        engine=info.engine,
        recipe_sha256=info.recipe_sha256,
        hidden_size=info.hidden_size,
        tokens_per_tile=info.tokens_per_tile,
        tile_size=info.tile_size,
        dtype=DATA_TYPES[info.dtype],
        default_tile_count=info.default_tile_count,
        max_tile_count=info.max_tile_count,
        max_image_byte_count=info.max_image_byte_count,
        max_image_pixel_count=info.max_image_pixel_count,
        checkpoint=checkpoint_pb2.CheckpointFingerprint(**vars(info.checkpoint)),
    )


def _header(encoded: EncodedImage) -> vision_pb2.EncodeImageHeader:
    embedding = encoded.embedding
    return vision_pb2.EncodeImageHeader(
        id=tensor_pb2.EmbeddingId(
            content_sha256=embedding.id.content_sha256,
            recipe_sha256=embedding.id.recipe_sha256,
        ),
        spec=tensor_pb2.TensorSpec(
            dtype=DATA_TYPES[embedding.rows.dtype],
            shape=embedding.rows.shape,
            byte_count=embedding.byte_count,
        ),
        tile_count=embedding.grid.tile_count,
        grid_column_count=embedding.grid.column_count,
        grid_row_count=embedding.grid.row_count,
        image_width=embedding.image_width,
        image_height=embedding.image_height,
        cache_hit=encoded.cache_hit,
    )


def load_response(backlog: Backlog) -> vision_pb2.VisionServiceGetLoadResponse:
    """Returns what waits as a message."""
    return vision_pb2.VisionServiceGetLoadResponse(
        waiting_tile_count=backlog.waiting_count, backlog_seconds=backlog.seconds()
    )


def _place(slot: Slot, image_index: int) -> vision_pb2.EncodeImageResponse:
    place = tensor_pb2.SharedEmbedding(
        image_index=image_index, file=slot.file, offset=slot.offset, nonce=slot.nonce
    )
    return vision_pb2.EncodeImageResponse(shared_embedding=place)


async def _trailer(encoded: EncodedImage) -> vision_pb2.EncodeImageTrailer:
    return vision_pb2.EncodeImageTrailer(
        crc32=await encoded.embedding.crc32(),
        timings=_timings(encoded.timings),
        signature=await encoded.embedding.signature(),
    )


def _chunks(embedding: ImageEmbedding, image_index: int) -> Iterator[bytes]:
    data = tensor_bytes(embedding.rows)
    for offset in range(0, len(data), CHUNK_BYTE_COUNT):
        yield chunk_message(image_index, offset, data[offset : offset + CHUNK_BYTE_COUNT])


def _timings(timings: Timings) -> vision_pb2.EncodeTimings:
    return vision_pb2.EncodeTimings(
        preprocess_seconds=timings.preprocess_seconds,
        queue_seconds=timings.queue_seconds,
        forward_seconds=timings.forward_seconds,
    )
