"""What every service of the contract does the same way, over real gRPC."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from subprocess import PIPE
from typing import Any

import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from protos.errors import EngineDeadError, OverloadedError, ServiceError
from protos.internvl.v1 import tensor_pb2, vision_pb2, vision_pb2_grpc
from protos.process.logs import REQUEST_ID_KEY, configure
from protos.process.server import STOP_SIGNALS, Service, running_server, serve
from protos.process.settings import GrpcSettings, ServingSettings
from protos.status import from_rpc_error

NAME = "internvl.v1.VisionService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
Context = grpc.aio.ServicerContext[Any, Any]


class Servicer(vision_pb2_grpc.VisionServiceServicer):
    """Fails, or answers when it is told to."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.healthy = True
        self.called = asyncio.Event()
        self.release = asyncio.Event()

    async def EncodeImage(
        self, request: vision_pb2.EncodeImageRequest, context: Context
    ) -> AsyncGenerator[vision_pb2.EncodeImageResponse, None]:
        yield vision_pb2.EncodeImageResponse()
        self.called.set()
        await self.release.wait()
        if self.error is not None:
            raise self.error
        yield vision_pb2.EncodeImageResponse()

    async def PlanTiles(
        self, request: vision_pb2.PlanTilesRequest, context: Context
    ) -> vision_pb2.PlanTilesResponse:
        return vision_pb2.PlanTilesResponse()

    async def GetModelInfo(
        self, request: vision_pb2.VisionServiceGetModelInfoRequest, context: Context
    ) -> vision_pb2.VisionServiceGetModelInfoResponse:
        if self.error is not None:
            raise self.error
        bound = structlog.contextvars.get_contextvars()["request_id"]
        return vision_pb2.VisionServiceGetModelInfoResponse(model=bound)

    async def GetLoad(
        self, request: vision_pb2.VisionServiceGetLoadRequest, context: Context
    ) -> vision_pb2.VisionServiceGetLoadResponse:
        return vision_pb2.VisionServiceGetLoadResponse()

    def service(self) -> Service:
        return Service(
            NAME,
            lambda server: vision_pb2_grpc.add_VisionServiceServicer_to_server(self, server),
            lambda: self.healthy,
            max_message_byte_count=1 << 20,
        )


@pytest.fixture
def servicer() -> Servicer:
    return Servicer()


@pytest.fixture
async def channel(servicer: Servicer) -> AsyncIterator[grpc.aio.Channel]:
    async with (
        running_server(servicer.service(), "127.0.0.1", 0, drain_seconds=5) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield channel


async def model_info(channel: grpc.aio.Channel, request_id: str = "") -> str:
    stub = vision_pb2_grpc.VisionServiceStub(channel)
    metadata = ((REQUEST_ID_KEY, request_id),) if request_id else ()
    request = vision_pb2.VisionServiceGetModelInfoRequest()
    try:
        response = await stub.GetModelInfo(request, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    return response.model


async def check(channel: grpc.aio.Channel, name: str) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    response = await stub.Check(health_pb2.HealthCheckRequest(service=name))
    return int(response.status)


async def test_health_of_the_server_and_of_the_service(channel: grpc.aio.Channel) -> None:
    assert await check(channel, "") == SERVING
    assert await check(channel, NAME) == SERVING


async def test_reflection_lists_the_service(channel: grpc.aio.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (response,) = [response async for response in stub.ServerReflectionInfo(iter([request]))]
    assert NAME in [service.name for service in response.list_services_response.service]


async def test_request_id_of_the_caller_is_bound(channel: grpc.aio.Channel) -> None:
    assert await model_info(channel, "from-the-caller") == "from-the-caller"
    assert len(await model_info(channel)) == 32


async def test_service_error_crosses_as_it_is(
    servicer: Servicer, channel: grpc.aio.Channel
) -> None:
    servicer.error = OverloadedError("9 of 9 places are taken", field="x", retry_after=2.0)
    with pytest.raises(OverloadedError, match="9 of 9") as info:
        await model_info(channel)
    assert (info.value.field, info.value.retry_after) == ("x", 2.0)


async def test_error_in_the_middle_of_a_stream(
    servicer: Servicer, channel: grpc.aio.Channel
) -> None:
    servicer.error = EngineDeadError("the engine died")
    servicer.release.set()
    stub = vision_pb2_grpc.VisionServiceStub(channel)
    call = stub.EncodeImage(vision_pb2.EncodeImageRequest())
    assert isinstance(await call.read(), vision_pb2.EncodeImageResponse)
    with pytest.raises(grpc.aio.AioRpcError) as info:
        await call.read()
    assert type(from_rpc_error(info.value)) is EngineDeadError


async def test_a_call_that_there_is_no_memory_for_may_be_tried_again(
    servicer: Servicer, channel: grpc.aio.Channel
) -> None:
    servicer.error = RuntimeError("DefaultCPUAllocator: can't allocate memory")
    with pytest.raises(OverloadedError, match="no memory for this call") as info:
        await model_info(channel)
    assert info.value.retry_after == 1.0


async def test_bug_is_logged_with_traceback_and_answered_without(
    servicer: Servicer, channel: grpc.aio.Channel
) -> None:
    servicer.error = ZeroDivisionError("secret detail")
    with capture_logs() as events, pytest.raises(ServiceError) as info:
        await model_info(channel)
    assert type(info.value) is ServiceError
    assert "secret" not in info.value.message
    (event,) = [event for event in events if event["event"] == "bug"]
    assert isinstance(event["exc_info"], ZeroDivisionError)


async def test_message_over_the_limit_is_refused(channel: grpc.aio.Channel) -> None:
    stub = vision_pb2_grpc.VisionServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as info:
        await stub.EncodeImage(vision_pb2.EncodeImageRequest(image=bytes(2 << 20))).read()
    assert info.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_address_in_use_is_an_os_error(servicer: Servicer) -> None:
    service = servicer.service()
    async with running_server(service, "127.0.0.1", 0, 1) as port:
        with pytest.raises(
            OSError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"
        ):
            async with running_server(service, "127.0.0.1", port, 1):
                pass


@pytest.mark.parametrize("signum", STOP_SIGNALS)
async def test_a_signal_drains_the_call_in_flight(
    servicer: Servicer, signum: signal.Signals
) -> None:
    with capture_logs() as events:
        serving = asyncio.create_task(serve(servicer.service(), GrpcSettings()))
        # A log event cannot be awaited.
        while not (ports := [event["port"] for event in events if event["event"] == "serving"]):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{ports[0]}") as channel:
            stub = vision_pb2_grpc.VisionServiceStub(channel)
            call = stub.EncodeImage(vision_pb2.EncodeImageRequest())
            await servicer.called.wait()
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == SERVING
            signal.raise_signal(signum)
            assert (await watch.read()).status == NOT_SERVING
            servicer.release.set()
            assert len([response async for response in call]) == 2
            assert await serving is True


async def read_all(call: Any) -> list[Any]:
    return [response async for response in call]


async def watched(stub: health_pb2_grpc.HealthStub, name: str) -> asyncio.Task[list[int]]:
    """Watches a service: once told of it, all that comes until the server lets the watcher go."""
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=name))
    assert (await watch.read()).status == SERVING

    async def changes() -> list[int]:
        statuses = []
        while (response := await watch.read()) is not grpc.aio.EOF:
            statuses.append(response.status)
        return statuses

    return asyncio.create_task(changes())


async def stopped_with_calls(drain_seconds: float, *, answered: bool) -> None:
    """Starts a server, and stops it while it is called and watched.

    Args:
        drain_seconds: what the server gives a call in flight.
        answered: whether the call ends by itself; else it is cut off.
    """
    servicer = Servicer()
    async with AsyncExitStack() as stack:
        server = running_server(servicer.service(), "127.0.0.1", 0, drain_seconds)
        port = await stack.enter_async_context(server)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = vision_pb2_grpc.VisionServiceStub(channel).EncodeImage(
                vision_pb2.EncodeImageRequest()
            )
            health = health_pb2_grpc.HealthStub(channel)
            watchers = [await watched(health, name) for name in ("", NAME)]
            await servicer.called.wait()
            if answered:
                asyncio.get_running_loop().call_later(0.02, servicer.release.set)
            answer = asyncio.create_task(read_all(call))
            await stack.aclose()
            if answered:
                assert len(await answer) == 2
                assert await asyncio.gather(*watchers) == [[NOT_SERVING]] * 2
            else:
                assert await call.code() is grpc.StatusCode.UNAVAILABLE
                await asyncio.gather(answer, *watchers, return_exceptions=True)


@pytest.mark.timeout(60)
async def test_fifty_servers_stop_with_calls_in_flight() -> None:
    """One after another, and two at a time: neither a call nor a watcher holds a stop up."""
    for _ in range(25):
        cut_off = stopped_with_calls(0.02, answered=False)
        await asyncio.wait_for(asyncio.gather(stopped_with_calls(5, answered=True), cut_off), 5)


async def test_a_watcher_that_leaves_takes_no_change_from_the_others(
    servicer: Servicer,
) -> None:
    request = health_pb2.HealthCheckRequest(service=NAME)
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(
            running_server(servicer.service(), "127.0.0.1", 0, 5)
        )
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stays, leaves = (health_pb2_grpc.HealthStub(channel).Watch(request) for _ in range(2))
            for watch in (stays, leaves):
                assert (await watch.read()).status == SERVING
            leaves.cancel()
            await check(channel, NAME)
            await stack.aclose()
            assert (await stays.read()).status == NOT_SERVING


class Flood(Servicer):
    """Answers without end."""

    async def EncodeImage(
        self, request: vision_pb2.EncodeImageRequest, context: Context
    ) -> AsyncGenerator[vision_pb2.EncodeImageResponse, None]:
        chunk = tensor_pb2.EmbeddingChunk(data=bytes(1 << 19))
        while True:
            yield vision_pb2.EncodeImageResponse(embedding_chunk=chunk)


async def test_a_caller_that_leaves_a_full_stream_is_no_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure("info", "json")
    logging.getLogger("grpc").addHandler(seen := Seen())
    try:
        async with (
            running_server(Flood().service(), "127.0.0.1", 0, drain_seconds=5) as port,
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            stub = vision_pb2_grpc.VisionServiceStub(channel)
            for _ in range(50):
                call = stub.EncodeImage(vision_pb2.EncodeImageRequest())
                await call.read()
                await asyncio.sleep(0.1)  # the flow control's window is full
                call.cancel()
                await asyncio.sleep(0.05)
                if seen.messages:
                    break
    finally:
        logging.getLogger("grpc").removeHandler(seen)
    assert any("ExecuteBatchError" in message for message in seen.messages)
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {(event["event"], event.get("status")) for event in events} == {("request", "CANCELLED")}


class Seen(logging.Handler):
    """Keeps the messages of a library, whatever becomes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps one."""
        self.messages.append(record.getMessage())


async def test_health_of_a_service_that_is_not_here(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as info:
        await check(channel, "internvl.v1.LLMService")
    assert info.value.code() is grpc.StatusCode.NOT_FOUND
    request = health_pb2.HealthCheckRequest(service="internvl.v1.LLMService")
    watch = health_pb2_grpc.HealthStub(channel).Watch(request)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


async def test_dead_engine_ends_serving(servicer: Servicer) -> None:
    servicer.healthy = False
    assert await serve(servicer.service(), GrpcSettings()) is False


def test_settings_explain_themselves() -> None:
    schema = ServingSettings.model_json_schema()
    assert all(option["description"] for option in schema["properties"].values())
    assert json.dumps(schema)


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_ends_a_process_that_loads(signum: signal.Signals) -> None:
    program = (
        "import time; from protos.process.server import exit_on_stop_signals;"
        " exit_on_stop_signals(); print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=PIPE, stderr=PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signum)
        assert process.communicate(timeout=10) == (b"", b"")
    assert process.returncode == 128 + signum
