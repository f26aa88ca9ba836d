"""What no caller can do to a server of the contract, over real gRPC."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from protos.errors import DeadlineError, InvalidArgumentError, OverloadedError, ServiceError
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc, vision_pb2, vision_pb2_grpc
from protos.process.logs import REQUEST_ID_KEY
from protos.process.server import Service, running_server
from protos.status import from_rpc_error

VISION = "/internvl.v1.VisionService"
LLM = "/internvl.v1.LLMService"
CHECK = "/grpc.health.v1.Health/Check"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
SERVING = health_pb2.HealthCheckResponse.SERVING
# Long for what is answered at once, and far less than any time limit of the server.
SOON_SECONDS = 5.0
MIB = 1 << 20


class Listener(llm_pb2_grpc.LLMServiceServicer):
    """Reads what it is told, and says nothing; counts no tokens."""

    async def Generate(
        self, requests: AsyncIterator[llm_pb2.GenerateRequest], context: Any
    ) -> AsyncIterator[llm_pb2.GenerateResponse]:
        async for _ in requests:
            pass
        return
        yield

    async def CountTokens(
        self, request: llm_pb2.CountTokensRequest, context: Any
    ) -> llm_pb2.CountTokensResponse:
        return llm_pb2.CountTokensResponse()

    async def GetModelInfo(
        self, request: llm_pb2.LLMServiceGetModelInfoRequest, context: Any
    ) -> llm_pb2.LLMServiceGetModelInfoResponse:
        return llm_pb2.LLMServiceGetModelInfoResponse()

    async def Detokenize(
        self, request: llm_pb2.DetokenizeRequest, context: Any
    ) -> llm_pb2.DetokenizeResponse:
        return llm_pb2.DetokenizeResponse()

    async def CheckGuide(
        self, request: llm_pb2.CheckGuideRequest, context: Any
    ) -> llm_pb2.CheckGuideResponse:
        return llm_pb2.CheckGuideResponse()

    async def GetLoad(
        self, request: llm_pb2.GetLoadRequest, context: Any
    ) -> llm_pb2.GetLoadResponse:
        return llm_pb2.GetLoadResponse()


class Servicer(vision_pb2_grpc.VisionServiceServicer):
    """Names the request; encodes nothing, for ever."""

    async def EncodeImage(
        self, request: vision_pb2.EncodeImageRequest, context: Any
    ) -> AsyncIterator[vision_pb2.EncodeImageResponse]:
        yield vision_pb2.EncodeImageResponse()
        await asyncio.Event().wait()

    async def PlanTiles(
        self, request: vision_pb2.PlanTilesRequest, context: Any
    ) -> vision_pb2.PlanTilesResponse:
        return vision_pb2.PlanTilesResponse()

    async def GetModelInfo(
        self, request: vision_pb2.VisionServiceGetModelInfoRequest, context: Any
    ) -> vision_pb2.VisionServiceGetModelInfoResponse:
        request_id = structlog.contextvars.get_contextvars()["request_id"]
        return vision_pb2.VisionServiceGetModelInfoResponse(model=request_id)

    async def GetLoad(
        self, request: vision_pb2.VisionServiceGetLoadRequest, context: Any
    ) -> vision_pb2.VisionServiceGetLoadResponse:
        return vision_pb2.VisionServiceGetLoadResponse()


def service(**fields: Any) -> Service:
    def register(server: grpc.aio.Server) -> None:
        vision_pb2_grpc.add_VisionServiceServicer_to_server(Servicer(), server)
        llm_pb2_grpc.add_LLMServiceServicer_to_server(Listener(), server)

    return replace(Service("internvl.v1.VisionService", register, lambda: True), **fields)


@asynccontextmanager
async def serving(**fields: Any) -> AsyncIterator[grpc.aio.Channel]:
    async with (
        running_server(service(**fields), "127.0.0.1", 0, drain_seconds=0) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield channel


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    async with serving(max_call_count=2) as channel:
        yield channel


async def silence() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


def called(channel: grpc.aio.Channel, method: str, messages: Any, **options: Any) -> Any:
    """Calls any method as a stream of bytes both ways, as a caller may who obeys nothing."""
    return channel.stream_stream(method)(messages, **options)


async def ending(call: Any) -> ServiceError | None:
    """Returns how a call ends: None if well."""
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    return None


async def refusal(
    channel: grpc.aio.Channel, method: str, messages: Sequence[bytes] | AsyncIterator[bytes]
) -> ServiceError:
    """Returns the error that a call soon ends with."""
    error = await asyncio.wait_for(ending(called(channel, method, messages)), SOON_SECONDS)
    assert error is not None
    return error


async def health(channel: grpc.aio.Channel) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    response = await stub.Check(health_pb2.HealthCheckRequest(), timeout=SOON_SECONDS)
    return int(response.status)


async def watching(channel: grpc.aio.Channel) -> Any:
    """Returns a call that watches the server's health and has been told."""
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == SERVING
    return watch


async def test_health_is_told_when_all_places_are_taken(channel: grpc.aio.Channel) -> None:
    idle = [called(channel, f"{VISION}/EncodeImage", [b""]) for _ in range(2)]
    for call in idle:
        assert await call.read() == b""  # it has its place
    error: ServiceError | None = await refusal(channel, f"{VISION}/EncodeImage", [b""])
    assert isinstance(error, OverloadedError)
    assert error.message == "2 calls are running; the limit is 2"
    assert error.retry_after == 1.0
    assert await health(channel) == SERVING
    # Nor does a question need a place among them: it is what a full service is asked.
    for method in ("GetModelInfo", "GetLoad", "PlanTiles"):
        assert await ending(called(channel, f"{VISION}/{method}", [b""])) is None
    # Whoever finds no place is told so before it has sent anything.
    assert type(await refusal(channel, f"{VISION}/EncodeImage", silence())) is OverloadedError
    idle[0].cancel()
    error = OverloadedError("not yet")
    while error is not None:  # until it has gone
        call = called(channel, f"{VISION}/EncodeImage", [b""])
        error = None if await call.read() == b"" else await ending(call)
    call.cancel()
    idle[1].cancel()


async def test_questions_are_few_and_hinder_nobody(
    channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protos.process.calls.MAX_SIDE_CALL_COUNT", 3)
    silent: list[Any] = []
    while await ending(called(channel, f"{VISION}/GetLoad", [b""])) is None:
        # This question may have had the place of one of them, which was refused then.
        silent = [call for call in silent if not call.done()]
        silent += [called(channel, f"{VISION}/GetLoad", silence()) for _ in range(3 - len(silent))]
    assert await ending(called(channel, f"{VISION}/GetModelInfo", [b""])) is None
    assert await health(channel) == SERVING
    for call in silent:
        call.cancel()


async def test_watchers_are_few_and_hinder_nobody(
    channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protos.process.calls.MAX_SIDE_CALL_COUNT", 3)
    watches = [await watching(channel) for _ in range(3)]
    error = await refusal(channel, "/grpc.health.v1.Health/Watch", [b""])
    assert type(error) is OverloadedError
    assert await health(channel) == SERVING
    assert await ending(called(channel, f"{VISION}/GetModelInfo", [b""])) is None
    idle = [called(channel, REFLECTION, silence()) for _ in range(3)]
    assert type(await refusal(channel, "/grpc.health.v1.Health/Watch", [b""])) is OverloadedError
    for call in [*watches, *idle]:
        call.cancel()


@pytest.mark.parametrize(
    ("method", "limit"),
    [
        (f"{LLM}/Generate", "FIRST_MESSAGE_SECONDS"),
        (REFLECTION, "FIRST_MESSAGE_SECONDS"),
        (f"{LLM}/CountTokens", "ONLY_MESSAGE_SECONDS"),
        (f"{VISION}/EncodeImage", "ONLY_MESSAGE_SECONDS"),
        (f"{VISION}/GetModelInfo", "ONLY_MESSAGE_SECONDS"),
        (CHECK, "ONLY_MESSAGE_SECONDS"),
    ],
)
async def test_a_call_that_says_nothing_is_ended(
    channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch, method: str, limit: str
) -> None:
    monkeypatch.setattr(f"protos.process.calls.{limit}", 0.05)
    error = await refusal(channel, method, silence())
    assert type(error) is DeadlineError
    assert error.message == "no message came within 0.05 seconds"


UNARY_METHODS = (
    f"{VISION}/EncodeImage",
    f"{VISION}/GetModelInfo",
    f"{LLM}/CountTokens",
    f"{LLM}/GetLoad",
    CHECK,
)


@pytest.mark.parametrize("method", UNARY_METHODS)
async def test_a_call_without_its_message_is_the_callers_mistake(
    channel: grpc.aio.Channel, method: str
) -> None:
    error = await refusal(channel, method, [])
    assert type(error) is InvalidArgumentError
    assert error.message == "the call ended without a message"


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\xff"], ids=["no-tag", "cut-off"])
@pytest.mark.parametrize("method", [*UNARY_METHODS, f"{LLM}/Generate", REFLECTION])
async def test_bytes_that_are_no_message_are_the_callers_mistake(
    channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture, method: str, data: bytes
) -> None:
    with capture_logs() as events, caplog.at_level(logging.DEBUG, "grpc"):
        error = await refusal(channel, method, [data])
    assert type(error) is InvalidArgumentError
    assert error.message == "the message is not valid protobuf"
    assert not [event for event in events if event["event"] == "bug"]
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_second_message_of_a_unary_call_is_not_read(channel: grpc.aio.Channel) -> None:
    call = called(channel, f"{VISION}/GetModelInfo", [b"", b"\xff\xff\xff"])
    assert await asyncio.wait_for(ending(call), SOON_SECONDS) is None


async def test_a_message_too_large_is_refused_wherever_it_comes(channel: grpc.aio.Channel) -> None:
    large = bytes(5 * MIB)
    for messages in ([large], [b"", large]):
        call = called(channel, f"{LLM}/Generate", messages)
        error = await asyncio.wait_for(ending(call), SOON_SECONDS)
        assert error is not None
    assert type(await refusal(channel, f"{LLM}/CountTokens", [large])) is OverloadedError


async def test_a_message_is_not_unpacked_to_more_than_the_limit(channel: grpc.aio.Channel) -> None:
    """16 MB of zeros are 16 KB on the wire."""
    call = called(
        channel, f"{LLM}/CountTokens", [bytes(16 * MIB)], compression=grpc.Compression.Gzip
    )
    assert type(await asyncio.wait_for(ending(call), SOON_SECONDS)) is OverloadedError


async def test_a_method_that_is_not_here(
    channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    call = called(channel, f"{VISION}/Sing", [b""])
    assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
    assert not caplog.records


async def test_a_request_id_of_any_length_does_not_reach_the_log(
    channel: grpc.aio.Channel,
) -> None:
    metadata = ((REQUEST_ID_KEY, "x" * 129),)
    call = called(channel, f"{VISION}/GetModelInfo", [b""], metadata=metadata)
    info = vision_pb2.VisionServiceGetModelInfoResponse.FromString(await call.read())
    assert len(info.model) == 32


@pytest.mark.parametrize("told", [True, False])
async def test_reflection_is_an_option(told: bool) -> None:
    async with serving(reflection=told) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        call = stub.ServerReflectionInfo(iter([request]))
        if told:
            assert [len(answer.list_services_response.service) async for answer in call] == [3]
        else:
            assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
