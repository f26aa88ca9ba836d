"""The VisionService servicer: messages to plain values and back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from typing import Any

import grpc
import structlog
import torch

from protos.errors import ModelMismatchError
from protos.internvl.v1 import tensor_pb2, vision_pb2, vision_pb2_grpc
from protos.transport import CHUNK_BYTE_COUNT
from vision_service.embedding import ImageEmbedding, Timings, tensor_bytes
from vision_service.encoder import ImageEncoder

SERVICE_NAME = vision_pb2.DESCRIPTOR.services_by_name["VisionService"].full_name
DATA_TYPES = {
    torch.bfloat16: tensor_pb2.DATA_TYPE_BF16,
    torch.float16: tensor_pb2.DATA_TYPE_FP16,
    torch.float32: tensor_pb2.DATA_TYPE_FP32,
}
logger = structlog.get_logger()


class VisionServicer(vision_pb2_grpc.VisionServiceServicer):
    """Serves an ImageEncoder; errors leave as they are, the interceptor makes a status of them."""

    def __init__(self, encoder: ImageEncoder) -> None:
        self._encoder = encoder

    async def EncodeImage(
        self,
        request: vision_pb2.EncodeImageRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncGenerator[vision_pb2.EncodeImageResponse, None]:
        """Answers with one header, the chunks and one trailer."""
        self._check_recipe(request)
        tile_cap = request.max_tile_count if request.HasField("max_tile_count") else None
        embedding, cache_hit = await self._encoder.encode(request.image, tile_cap)
        timings = Timings() if cache_hit else embedding.timings
        logger.info(
            "image_encoded",
            image_bytes=len(request.image),
            tiles=embedding.grid.tile_count,
            cache_hit=cache_hit,
            preprocess_seconds=round(timings.preprocess_seconds, 6),
            queue_seconds=round(timings.queue_seconds, 6),
            forward_seconds=round(timings.forward_seconds, 6),
        )
        yield vision_pb2.EncodeImageResponse(header=_header(embedding, cache_hit))
        for response in _chunks(embedding):
            yield response
        yield vision_pb2.EncodeImageResponse(trailer=_trailer(embedding, timings))

    async def GetModelInfo(
        self,
        request: vision_pb2.VisionServiceGetModelInfoRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> vision_pb2.VisionServiceGetModelInfoResponse:
        """Describes the checkpoint and the limits."""
        info = self._encoder.info
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
        )

    def _check_recipe(self, request: vision_pb2.EncodeImageRequest) -> None:
        expected, actual = request.expected_recipe_sha256, self._encoder.info.recipe_sha256
        if request.HasField("expected_recipe_sha256") and expected != actual:
            raise ModelMismatchError(
                f"expected_recipe_sha256 is {expected.hex()}, "
                f"but this service encodes by {actual.hex()}",
                field="expected_recipe_sha256",
            )


def _header(embedding: ImageEmbedding, cache_hit: bool) -> vision_pb2.EncodeImageHeader:
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
        cache_hit=cache_hit,
    )


def _chunks(embedding: ImageEmbedding) -> Iterator[vision_pb2.EncodeImageResponse]:
    data = tensor_bytes(embedding.rows)
    for offset in range(0, len(data), CHUNK_BYTE_COUNT):
        # Filled in place: a message given to another's constructor is copied, at 1 ms for a chunk.
        response = vision_pb2.EncodeImageResponse()
        response.chunk.offset = offset
        response.chunk.data = bytes(data[offset : offset + CHUNK_BYTE_COUNT])
        yield response


def _trailer(embedding: ImageEmbedding, timings: Timings) -> vision_pb2.EncodeImageTrailer:
    return vision_pb2.EncodeImageTrailer(
        crc32=embedding.crc32,
        timings=vision_pb2.EncodeTimings(
            preprocess_seconds=timings.preprocess_seconds,
            queue_seconds=timings.queue_seconds,
            forward_seconds=timings.forward_seconds,
        ),
    )
