"""`python -m tests.replicas.scripted vision|llm`: a scripted service that logs the calls it has.

It is a process that starts in a second and may be killed or stopped; what a test counts is in its
log, written by who was called.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, Literal

import grpc
import structlog
from pydantic import Field
from pydantic_settings import CliApp, SettingsConfigDict

from gateway.services.channel import LLM_SERVICE, VISION_SERVICE
from protos.errors import OverloadedError
from protos.identity import content_digest
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc, vision_pb2, vision_pb2_grpc
from protos.process import logs
from protos.process.server import Service, exit_on_stop_signals, serve
from protos.process.settings import MIB, ServingSettings
from tests.fakes import LLMContext, ScriptedLLM, ScriptedVision, VisionContext

logger = structlog.get_logger()
ROUTING_KEY = "x-internvl-routing-key"


class Options(ServingSettings):
    """What the service does."""

    model_config = SettingsConfigDict(env_prefix="INTERNVL_SCRIPTED_", cli_prog_name="scripted")

    service: Literal["vision", "llm"]
    """Which of the two it is."""
    encode_seconds: float = 0.0
    """How long an image takes that it does not hold."""
    token_count: int = Field(default=2, ge=1)
    """How many tokens an answer has."""
    token_seconds: float = 0.0
    """How long each of them takes."""
    max_place_count: int = 512
    """Most calls that run at a time; more are refused."""


class CallPlaces:
    """How many calls run, and that further ones are refused."""

    def __init__(self, max_count: int) -> None:
        self.max_count = max_count
        self.count = 0

    @contextmanager
    def taken(self, context: grpc.aio.ServicerContext[Any, Any]) -> Iterator[str]:
        """Takes a place; yields the call's routing key.

        Raises:
            OverloadedError: there is none.
        """
        key = str(dict(context.invocation_metadata() or ()).get(ROUTING_KEY, ""))
        if self.count >= self.max_count:
            logger.info("refused", key=key)
            raise OverloadedError(f"{self.count} calls are running", retry_after=1)
        self.count += 1
        try:
            yield key
        finally:
            self.count -= 1


class VisionReplica(ScriptedVision):
    """Logs `encoded` for each image, and whether it held the embedding."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self._options = options
        self._places = CallPlaces(options.max_place_count)
        self._contents: set[bytes] = set()

    async def EncodeImage(
        self, request: vision_pb2.EncodeImageRequest, context: VisionContext
    ) -> AsyncGenerator[vision_pb2.EncodeImageResponse, None]:
        content = content_digest(request.image)
        with self._places.taken(context) as key:
            if content not in self._contents:
                await asyncio.sleep(self._options.encode_seconds)
            is_held = content in self._contents
            self._contents.add(content)
            async with aclosing(super().EncodeImage(request, context)) as responses:
                async for response in responses:
                    yield response
            self.requests.clear()
            logger.info("encoded", content=content.hex(), is_held=is_held, key=key)


class LLMReplica(ScriptedLLM):
    """Logs `started` with how many images it wants, `generated` at the end."""

    def __init__(self, options: Options) -> None:
        super().__init__(texts=["so "] * options.token_count)
        self._options = options
        self._places = CallPlaces(options.max_place_count)

    async def GetLoad(  # type: ignore[override] # the other one refuses
        self, request: llm_pb2.GetLoadRequest, context: Any
    ) -> llm_pb2.GetLoadResponse:
        return llm_pb2.GetLoadResponse(running_sequence_count=self._places.count)

    async def Generate(
        self, requests: AsyncIterator[llm_pb2.GenerateRequest], context: LLMContext
    ) -> AsyncGenerator[llm_pb2.GenerateResponse, None]:
        with self._places.taken(context) as key:
            async with aclosing(super().Generate(requests, context)) as responses:
                async for response in responses:
                    if response.HasField("wanted"):
                        wanted_count = len(response.wanted.image_indexes)
                        logger.info("started", wanted_count=wanted_count, key=key)
                        self.starts.clear()
                    elif response.HasField("delta"):
                        await asyncio.sleep(self._options.token_seconds)
                    yield response
            logger.info("generated", key=key)


def service_of(options: Options) -> Service:
    """Returns the service that the options describe."""
    if options.service == "vision":
        vision = VisionReplica(options)
        return Service(
            VISION_SERVICE,
            lambda server: vision_pb2_grpc.add_VisionServiceServicer_to_server(vision, server),
            lambda: True,
            32 * MIB,
        )
    llm = LLMReplica(options)
    return Service(
        LLM_SERVICE,
        lambda server: llm_pb2_grpc.add_LLMServiceServicer_to_server(llm, server),
        lambda: True,
    )


def main() -> None:
    """Serves until SIGTERM."""
    exit_on_stop_signals()
    options = CliApp.run(Options)
    logs.configure(options.log_level, options.log_format)
    asyncio.run(serve(service_of(options), options))


if __name__ == "__main__":
    main()
