"""The ways of an embedding: one hop to a reader, or two through the gateway to the LLM service."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import torch

from gateway.chat import ChatPipeline
from gateway.dialects.chat import parse
from gateway.generation import GenerationRequest
from gateway.images.data_urls import Attachments
from gateway.images.downloads import open_downloads
from gateway.images.fetcher import ImageFetcher, ImageLimits
from gateway.memory import Memory
from gateway.pools import open_pools
from gateway.record import RequestRecord
from gateway.request_images import RequestImages, RequestLimits
from gateway.services.channel import LLM_SERVICE, VISION_SERVICE, ServiceTLS, open_channel
from gateway.services.llm import LLMClient
from gateway.services.pair import ServicePair
from gateway.services.routing import Router
from gateway.services.vision import VisionClient
from gateway.settings import Settings
from llm_service.tables import TableChunk, TableSpec, TableUpload
from protos.internvl.v1 import vision_pb2
from protos.process.settings import GIB
from protos.wire_format import read_chunk
from tests.benchmarks.scripted_services import MODEL

ROW_COUNT, HIDDEN_SIZE = 13 * 256, 4096
BYTE_COUNT = 2 * ROW_COUNT * HIDDEN_SIZE
REQUEST_SECONDS = 60.0


class Reader:
    """Calls the vision service without a gateway, and reads as the LLM service does."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._encode_image = channel.unary_stream(
            f"/{VISION_SERVICE}/EncodeImage",
            request_serializer=vision_pb2.EncodeImageRequest.SerializeToString,
            response_deserializer=_response,
        )

    async def drop(self, image: bytes) -> None:
        """Reads an embedding and forgets it."""
        byte_count = 0
        async for response in self._encode_image(vision_pb2.EncodeImageRequest(image=image)):
            if isinstance(response, TableChunk):
                byte_count += len(response.data)
        assert byte_count == BYTE_COUNT

    async def receive(self, image: bytes) -> None:
        """Reads an embedding into a prompt table."""
        upload = TableUpload(TableSpec(torch.bfloat16, (ROW_COUNT, HIDDEN_SIZE), BYTE_COUNT))
        async for response in self._encode_image(vision_pb2.EncodeImageRequest(image=image)):
            if isinstance(response, TableChunk):
                upload.add(response.offset, response.data)
            elif response.HasField("trailer"):
                upload.finish(response.trailer.crc32)


def _response(message: bytes) -> vision_pb2.EncodeImageResponse | TableChunk:
    chunk = read_chunk(message)
    return (
        vision_pb2.EncodeImageResponse.FromString(message) if chunk is None else TableChunk(*chunk)
    )


class Relay:
    """Chat requests through the gateway's pipeline to an LLM service that holds one image."""

    def __init__(self, pipeline: ChatPipeline, images: Sequence[bytes]) -> None:
        self._pipeline = pipeline
        self._requests = deque(map(_request, images))

    async def send_other_image(self) -> None:
        """Asks about an image that the LLM service does not hold any more."""
        self._requests.rotate()
        await self._ask(sent_image_count=1)

    async def ask_again(self) -> None:
        """Asks about the image that it holds."""
        await self._ask(sent_image_count=0)

    async def _ask(self, sent_image_count: int) -> None:
        deadline, record = asyncio.get_running_loop().time() + REQUEST_SECONDS, RequestRecord()
        with Memory(GIB).share() as share:
            request, attachments = self._requests[0], Attachments(share)
            answering = self._pipeline.answering(request, attachments, deadline, record)
            async with answering as (_, events):
                async for _ in events:
                    pass
        assert record.encoded_image_count + record.cached_image_count == sent_image_count


@asynccontextmanager
async def open_relay(
    vision_address: str, llm_address: str, images: Sequence[bytes], tls: ServiceTLS | None = None
) -> AsyncIterator[Relay]:
    """Yields a relay between two services; it asks about the images in turn."""
    settings = Settings()
    limits = ImageLimits(settings.max_image_byte_count, REQUEST_SECONDS, ())
    async with AsyncExitStack() as exits:
        pools = exits.enter_context(open_pools())
        vision = await exits.enter_async_context(open_channel(vision_address, VISION_SERVICE, tls))
        llm = await exits.enter_async_context(open_channel(llm_address, LLM_SERVICE, tls))
        downloads = await exits.enter_async_context(open_downloads(settings.download_options))
        router = Router(settings.queue_limits, lambda reason: None)
        pair = ServicePair(
            VisionClient(vision, router), LLMClient(llm, router), allows_mismatch=False
        )
        request_images = RequestImages(
            ImageFetcher(downloads, pools, limits),
            pair,
            pools,
            RequestLimits(1, settings.max_image_byte_count, max_image_host_count=1),
        )
        yield Relay(ChatPipeline(request_images, pair), images)


def _request(image: bytes) -> GenerationRequest:
    url = f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}]
    messages = [{"role": "user", "content": content}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 1}
    (request,) = parse(json.dumps(body).encode(), strict_fields=False).generations
    return request
