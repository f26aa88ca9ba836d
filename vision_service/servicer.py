"""The VisionService servicer: messages to calls of the encoder, and its results to messages."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from typing import Any

import grpc

from protos.internvl.v1 import vision_pb2, vision_pb2_grpc
from protos.process.call_record import call_record
from protos.process.shared_memory import Slot, SlotWriter
from protos.wire_format import serialized
from vision_service import wire
from vision_service.embedding import tensor_bytes
from vision_service.encoder import EncodedImage, ImageEncoder

SERVICE_NAME = vision_pb2.DESCRIPTOR.services_by_name["VisionService"].full_name


class VisionServicer(vision_pb2_grpc.VisionServiceServicer):
    """Serves an ImageEncoder; errors leave as they are, the interceptor makes a status of them."""

    def __init__(self, encoder: ImageEncoder, memory: SlotWriter | None = None) -> None:
        """Makes it; without memory all embeddings go in chunks."""
        self._encoder = encoder
        self._memory = memory

    def register(self, server: grpc.aio.Server) -> None:
        vision_pb2_grpc.add_VisionServiceServicer_to_server(self, server)
        encode_image = grpc.unary_stream_rpc_method_handler(
            self.EncodeImage, vision_pb2.EncodeImageRequest.FromString, serialized
        )
        server.add_registered_method_handlers(SERVICE_NAME, {"EncodeImage": encode_image})

    async def EncodeImage(  # type: ignore[override]  # its chunks are bytes
        self,
        request: vision_pb2.EncodeImageRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncGenerator[vision_pb2.EncodeImageResponse | bytes, None]:
        """Answers with one header, the rows, and one trailer."""
        encoded = await self._encoder.encode(wire.read_request(request))
        lending = self._lending(request, encoded)
        responses = wire.encode_responses(encoded, request.image_index, lending)
        with call_record().timed("transfer"):
            async with aclosing(responses):
                async for response in responses:
                    yield response

    def _lending(
        self, request: vision_pb2.EncodeImageRequest, encoded: EncodedImage
    ) -> AbstractAsyncContextManager[Slot | None]:
        if self._memory is None:
            return nullcontext()
        rows = tensor_bytes(encoded.embedding.rows)
        return self._memory.lent(rows, wire.read_marker(request))

    async def PlanTiles(
        self,
        request: vision_pb2.PlanTilesRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> vision_pb2.PlanTilesResponse:
        """Tells how an image of this size, or this file, would be cut."""
        return wire.plan_response(await self._encoder.plan(wire.read_plan_request(request)))

    async def GetModelInfo(
        self,
        request: vision_pb2.VisionServiceGetModelInfoRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> vision_pb2.VisionServiceGetModelInfoResponse:
        """Describes the checkpoint and the limits."""
        return wire.model_info_response(self._encoder.info)

    async def GetLoad(
        self,
        request: vision_pb2.VisionServiceGetLoadRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> vision_pb2.VisionServiceGetLoadResponse:
        """Tells what waits."""
        return wire.load_response(self._encoder.backlog)
