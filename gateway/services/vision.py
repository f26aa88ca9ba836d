"""Calls of the vision service: an image file there, the pieces of its embedding back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import grpc

from gateway.memory import HeldFile
from gateway.services.channel import (
    VISION_SERVICE,
    FieldNamer,
    check_health,
    errors_of,
    seconds_until,
)
from gateway.services.messages import (
    EmbeddingPiece,
    checkpoint_fingerprint,
    embedding_piece,
    encode_request,
)
from protos.checkpoint.fingerprint import CheckpointFingerprint
from protos.identity import EmbeddingId
from protos.internvl.v1 import vision_pb2, vision_pb2_grpc
from protos.process.logs import request_metadata


@dataclass(frozen=True)
class ModelInfo:
    """What the vision service runs; fields as in VisionServiceGetModelInfoResponse."""

    model: str
    checkpoint: CheckpointFingerprint
    recipe_sha256: bytes
    hidden_size: int
    default_tile_count: int
    max_tile_count: int
    max_image_byte_count: int


@dataclass(frozen=True)
class EncodeRequest:
    """One image to encode, and the embedding that must come back.

    Attributes:
        file: the encoded file; sending it takes its bytes.
        max_tile_count: its tile cap; None for the service's default.
        service_recipe: the vision service's recipe_sha256, which `embedding_id` was derived from.
        embedding_id: names the embedding.
        max_queue_seconds: longest wait for the service's turn; None for any.
    """

    file: HeldFile
    max_tile_count: int | None
    service_recipe: bytes
    embedding_id: EmbeddingId
    max_queue_seconds: float | None = None


class VisionClient:
    """Calls the vision service."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._stub = vision_pb2_grpc.VisionServiceStub(channel)
        # The stub's call would hold the message as long as it lives.
        self._encode_image = channel.unary_stream(
            f"/{VISION_SERVICE}/EncodeImage",
            request_serializer=_serialized,
            response_deserializer=vision_pb2.EncodeImageResponse.FromString,
        )
        self._info: ModelInfo | None = None
        self._sending = asyncio.Lock()

    async def check_health(self, seconds: float) -> None:
        """Raises UnavailableError or DeadlineError unless the service is SERVING."""
        await check_health(self._channel, VISION_SERVICE, "vision", seconds)

    async def model_info(self, deadline: float) -> ModelInfo:
        """Returns what the service runs, asked once until `forget_model_info`."""
        return self._info or await self.ask_model_info(deadline)

    async def ask_model_info(self, deadline: float) -> ModelInfo:
        """Returns what the service runs now."""
        with errors_of("vision"):
            answer = await self._stub.GetModelInfo(
                vision_pb2.VisionServiceGetModelInfoRequest(),
                timeout=seconds_until(deadline),
                metadata=request_metadata(),
            )
        self._info = ModelInfo(
            model=answer.model,
            checkpoint=checkpoint_fingerprint(answer.checkpoint),
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
        self, request: EncodeRequest, name_field: FieldNamer, deadline: float
    ) -> AsyncGenerator[EmbeddingPiece, None]:
        """Yields the embedding's header, chunks and trailer as they come.

        Args:
            request: the image; its file is handed over to gRPC.
            name_field: what the caller calls a field of EncodeImageRequest.
            deadline: when it must be over, in the event loop's time.

        Raises:
            ServiceError: the class that the service answered with.
            DataLossError: the service names the embedding otherwise than we do.
        """
        await self._sending.acquire()  # one file at a time: gRPC copies them in the event loop
        try:
            call = self._encode_image(
                request, timeout=seconds_until(deadline), metadata=request_metadata()
            )
        finally:  # once the call's task, which is in the queue by now, has copied the file
            asyncio.get_running_loop().call_soon(self._sending.release)
        try:
            with errors_of("vision", name_field):
                while isinstance(response := await call.read(), vision_pb2.EncodeImageResponse):
                    piece = embedding_piece(response, request.embedding_id)
                    del response  # its bytes would stay in memory while the piece travels on
                    yield piece
        finally:
            call.cancel()


def _serialized(request: EncodeRequest) -> bytes:
    return encode_request(
        request.file.hand_over(),
        request.max_tile_count,
        request.service_recipe,
        request.max_queue_seconds,
    )
