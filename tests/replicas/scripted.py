"""`python -m tests.replicas.scripted vision|llm`: a scripted service that logs the calls it has.

It is a process that starts in a second and may be killed or stopped; what a test counts is in its
log, written by who was called.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import grpc
import structlog
from pydantic_settings import CliApp, SettingsConfigDict

from gateway.services.channel import LLM_SERVICE, VISION_SERVICE
from protos.errors import OverloadedError
from protos.identity import content_digest
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc, vision_pb2, vision_pb2_grpc
from protos.process import logs
from protos.process.call_record import call_record
from protos.process.server import Service, exit_on_stop_signals, serve
from protos.process.settings import MIB, GrpcSettings
from tests.fakes import LLMContext, ScriptedLLM, ScriptedVision, VisionContext

logger = structlog.get_logger()
ROUTING_KEY = "x-internvl-routing-key"
EVERY_LINE = 1e9


class Options(GrpcSettings):
    """What the service is."""

    model_config = SettingsConfigDict(env_prefix="INTERNVL_SCRIPTED_", cli_prog_name="scripted")

    service: Literal["vision", "llm"]
    """Which of the two."""
    encode_seconds: float = 0.02
    """How long an image takes that it does not hold."""


@dataclass(frozen=True)
class Manner:
    """How a request is to be dealt with, as words in its text or picture have it.

    Attributes:
        word_count, seconds: of the answer.
        place_count: most such requests that run at a time; more are refused.
    """

    word_count: int = 2
    seconds: float = 0.1
    place_count: int = 512

    def __str__(self) -> str:
        return f"{self.word_count} words in {self.seconds} s, {self.place_count} at a time"

    @classmethod
    def read(cls, text: str) -> Manner:
        """Returns what a text asks for."""
        found = re.search(r"(\d+) words in ([\d.]+) s, (\d+) at a time", text)
        return cls(int(found[1]), float(found[2]), int(found[3])) if found else cls()


USUAL = Manner()


class Places:
    """How many calls run.

    Args:
        tell_backlog: is told the seconds until a newcomer's turn, whenever they change.
    """

    def __init__(self, tell_backlog: Callable[[float], None]) -> None:
        self._tell_backlog = tell_backlog
        self._counts: Counter[Manner] = Counter()

    @contextmanager
    def taken(self, manner: Manner) -> Iterator[None]:
        """Takes a place for the time of the block.

        Raises:
            OverloadedError: there is none.
        """
        if self._counts[manner] >= manner.place_count:
            logger.info("refused")
            raise OverloadedError(f"{manner.place_count} calls are running", retry_after=1)
        self._counts[manner] += 1
        self._tell()
        try:
            yield
        finally:
            self._counts[manner] -= 1
            self._tell()

    def _tell(self) -> None:
        full = [one for one, count in self._counts.items() if count >= one.place_count]
        self._tell_backlog(max((one.seconds for one in full), default=0.0))


def routing_key(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Returns the key of a call; empty if it has none."""
    return str(dict(context.invocation_metadata() or ()).get(ROUTING_KEY, ""))


class VisionReplica(ScriptedVision):
    """Logs `began` of each image, and `encoded` with whether it held the embedding."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self._options = options
        self._places = Places(self._tell_backlog)
        self._contents: set[bytes] = set()

    def _tell_backlog(self, seconds: float) -> None:
        self.backlog_seconds = seconds

    async def EncodeImage(
        self, request: vision_pb2.EncodeImageRequest, context: VisionContext
    ) -> AsyncGenerator[vision_pb2.EncodeImageResponse, None]:
        content = content_digest(request.image)
        manner = Manner.read(request.image.decode(errors="replace"))
        with self._places.taken(manner):
            is_held = content in self._contents
            logger.info("began", key=routing_key(context))
            with call_record().timed("forward"):
                await asyncio.sleep(0 if is_held else self._options.encode_seconds)
            self._contents.add(content)
            async with aclosing(super().EncodeImage(request, context)) as responses:
                async for response in responses:
                    yield response
            self.requests.clear()
            logger.info("encoded", content=content.hex(), is_held=is_held)


class LLMReplica(ScriptedLLM):
    """Logs `began` with how many images it wants, and `generated` at the answer's end."""

    def __init__(self) -> None:
        super().__init__()
        self._places = Places(self._tell_backlog)

    def _tell_backlog(self, seconds: float) -> None:
        self.backlog_seconds = seconds

    async def Generate(
        self, requests: AsyncIterator[llm_pb2.GenerateRequest], context: LLMContext
    ) -> AsyncGenerator[llm_pb2.GenerateResponse, None]:
        first = await anext(requests, None)
        if first is None:  # the caller has gone
            return
        told = _chained(first, requests)
        manner = Manner.read(str(first.start.chat))
        with self._places.taken(manner), call_record().timed("decode"):
            async with aclosing(super().Generate(told, context)) as responses:
                async for response in responses:
                    if response.HasField("wanted"):
                        count = len(response.wanted.image_indexes)
                        logger.info("began", wanted_count=count, key=routing_key(context))
                    yield response
            self.starts.clear()
            logger.info("generated")

    async def _answer(
        self, start: llm_pb2.GenerateStart
    ) -> AsyncGenerator[llm_pb2.GenerateResponse, None]:
        manner = Manner.read(str(start.chat))
        told = ScriptedLLM(texts=["so "] * manner.word_count)
        async with aclosing(told._answer(start)) as responses:
            async for response in responses:
                if response.HasField("delta"):
                    await asyncio.sleep(manner.seconds / manner.word_count)
                yield response


async def _chained(
    first: llm_pb2.GenerateRequest, others: AsyncIterator[llm_pb2.GenerateRequest]
) -> AsyncIterator[llm_pb2.GenerateRequest]:
    yield first
    async for request in others:
        yield request


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
    llm = LLMReplica()
    return Service(
        LLM_SERVICE,
        lambda server: llm_pb2_grpc.add_LLMServiceServicer_to_server(llm, server),
        lambda: True,
    )


def main() -> None:
    """Serves until SIGTERM."""
    exit_on_stop_signals()
    options = CliApp.run(Options)
    # What a test counts is in the log: no line may be left out.
    logs.configure(options.log_level, options.log_format, EVERY_LINE)
    asyncio.run(serve(service_of(options), options))


if __name__ == "__main__":
    main()
