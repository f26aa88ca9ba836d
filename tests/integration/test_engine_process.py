"""The LLM service with its engine in another process: the same answers, and the death of either."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import torch

from protos.errors import EngineDeadError
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc, tensor_pb2
from tests.integration.llm_calls import exchange, start, text_of, trailer
from tests.known_callers import until
from tests.random_checkpoint import TEXT_WIDTH, write_random_checkpoint

OPTIONS = (
    *("--port", "0", "--torch.device", "cpu", "--torch.dtype", "float32"),
    *("--torch.thread-count", "1", "--kv-cache-byte-count", str(1 << 24)),
)
HOST = "protos.process.engine_host"
PART = "llm_service.engines.process.host"
ROW_COUNT = 256
SOON_SECONDS = 60.0
ENOUGH = 3000  # tokens, which take longer than any of this


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine-process") / "random"
    write_random_checkpoint(folder)
    return folder


class Service:
    """A service's process, and a client of it."""

    def __init__(self, process: Process, channel: grpc.aio.Channel) -> None:
        self.process = process
        self.stub: llm_pb2_grpc.LLMServiceAsyncStub = llm_pb2_grpc.LLMServiceStub(channel)

    @property
    def host(self) -> psutil.Process:
        """The process of its own host."""
        (host,) = psutil.Process(self.process.pid).children()
        return host

    async def answer(self, *uploads: llm_pb2.GenerateRequest, images: tuple[str, ...] = ()) -> str:
        requests = start("Hi", images, stop=llm_pb2.StopConditions(max_token_count=8))
        return text_of(await exchange(self.stub, requests, *uploads))


async def log_event(process: Process, name: str) -> dict[str, Any]:
    """Returns the next event of a name in the log."""
    assert process.stderr is not None
    told = []
    while line := await process.stderr.readline():
        told.append(line)
        event: dict[str, Any] = json.loads(line) if line.startswith(b"{") else {"event": ""}
        if event["event"] == name:
            return event
    raise AssertionError(f"ended without {name!r}: {told}")


@asynccontextmanager
async def started(checkpoint: Path, *options: str) -> AsyncIterator[Process]:
    """Starts a service; at the end it is killed if it still runs."""
    words = ["-m", "llm_service", "--checkpoint", str(checkpoint), *OPTIONS, *options]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, stderr=PIPE, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@asynccontextmanager
async def serving(checkpoint: Path, place: str = "own") -> AsyncIterator[Service]:
    async with started(checkpoint, "--engine-process", place) as process:
        port = (await log_event(process, "serving"))["port"]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Service(process, channel)


def endless() -> llm_pb2.GenerateRequest:
    ends = llm_pb2.StopConditions(max_token_count=ENOUGH, min_token_count=ENOUGH)
    return start("Hi", stop=ends)


def picture(seed: int) -> list[llm_pb2.GenerateRequest]:
    """Returns the upload of one picture's rows."""
    rows = torch.randn(ROW_COUNT, TEXT_WIDTH, generator=torch.Generator().manual_seed(seed))
    data = rows.numpy().tobytes()
    spec = tensor_pb2.TensorSpec(
        dtype=tensor_pb2.DATA_TYPE_FP32, shape=[ROW_COUNT, TEXT_WIDTH], byte_count=len(data)
    )
    header = llm_pb2.EmbeddingHeader(image_index=0, spec=spec)
    chunk = tensor_pb2.EmbeddingChunk(image_index=0, offset=0, data=data)
    return [
        llm_pb2.GenerateRequest(embedding_header=header),
        llm_pb2.GenerateRequest(embedding_chunk=chunk),
        trailer(data),
    ]


async def all_running(service: Service, count: int) -> None:
    async def watch() -> None:
        load = llm_pb2.GetLoadRequest()
        get_load = service.stub.GetLoad
        while (await get_load(load)).running_sequence_count < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    await asyncio.wait_for(watch(), SOON_SECONDS)


async def has_ended(process: psutil.Process) -> None:
    await asyncio.to_thread(process.wait, SOON_SECONDS)


async def test_an_own_process_gives_the_answers_of_none_and_drains(checkpoint: Path) -> None:
    uploads = picture(random.randrange(1 << 30))
    async with serving(checkpoint, "none") as service:
        assert not psutil.Process(service.process.pid).children()
        expected = [await service.answer(), await service.answer(*uploads, images=("a",))]
    async with serving(checkpoint) as service:
        host = service.host
        assert host.cmdline()[-3:-1] == ["llm_service.engines.process", "--fd"]
        answers = [await service.answer(), await service.answer(*uploads, images=("a",))]
        assert answers == expected
        service_memory = psutil.Process(service.process.pid).memory_maps()
        assert any("image-embeddings" in each.path and each.rss for each in service_memory)
        call = service.stub.Generate(iter([endless()]))
        await call.read()
        # As a terminal and a supervisor do: to all of the group.
        os.killpg(service.process.pid, signal.SIGTERM)
        await log_event(service.process, "draining")
        assert host.is_running()
        assert await call.read() is not grpc.aio.EOF  # it goes on
        call.cancel()
        assert (await log_event(service.process, "engine_process_ended"))["status"] == 0
        assert await service.process.wait() == 0
        await has_ended(host)


async def test_the_death_of_the_engines_process_ends_all_calls_and_the_service(
    checkpoint: Path,
) -> None:
    async with serving(checkpoint) as service:

        async def follow() -> None:
            await exchange(service.stub, endless())

        calls = [asyncio.ensure_future(follow()) for _ in range(3)]
        await all_running(service, 3)
        service.host.kill()
        failures = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(failure) for failure in failures] == [EngineDeadError] * 3
        assert (await log_event(service.process, "engine_process_ended"))["status"] == -9
        assert await service.process.wait() == 1


@pytest.mark.slow
async def test_the_death_of_the_service_ends_the_engines_process(checkpoint: Path) -> None:
    async with serving(checkpoint) as service:
        host = service.host
        call = service.stub.Generate(iter([endless()]))
        await call.read()
        service.process.kill()
        await has_ended(host)
        call.cancel()


@pytest.mark.slow
async def test_a_service_that_ends_while_it_loads_takes_the_process_with_it(
    checkpoint: Path,
) -> None:
    async with started(checkpoint, "--engine-process", "own") as process:
        service = psutil.Process(process.pid)
        await until(lambda: bool(service.children()), SOON_SECONDS)
        (host,) = service.children()
        process.terminate()
        assert await process.wait() == 128 + signal.SIGTERM
        await has_ended(host)


@pytest.mark.slow
async def test_a_start_that_fails_there_is_told_here(checkpoint: Path) -> None:
    options = ("--engine-process", "own", "--kv-cache-byte-count", "1")
    async with started(checkpoint, *options) as process:
        event = await log_event(process, "start_failed")
        assert event["error"].startswith("the KV cache has 1 bytes, and one block needs")
        assert await process.wait() == 1


async def test_a_host_that_is_not_there(checkpoint: Path, tmp_path: Path) -> None:
    async with started(checkpoint, "--engine-process", str(tmp_path / "none")) as process:
        event = await log_event(process, "start_failed")
        assert event["error"].startswith(f"engine_process is {tmp_path}/none, but: ")
        assert await process.wait() == 1


@pytest.mark.slow
async def test_ranks_of_mpirun_have_the_engine_themselves(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    engine = ("--engine", "tensorrt_llm", "--tensorrt-llm.engine-folder", str(tmp_path))
    words = ["-m", "llm_service", "--checkpoint", str(checkpoint), "--engine-process", "own"]
    process = await asyncio.create_subprocess_exec(sys.executable, *words, *engine, stderr=PIPE)
    event = await log_event(process, "start_failed")
    assert event["error"].endswith("serve it with --engine-process none")
    assert await process.wait() == 1
    await process.communicate()


@pytest.mark.slow
async def test_a_host_that_somebody_else_has_started_ends_with_its_service(
    checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "host"
    host = await asyncio.create_subprocess_exec(
        sys.executable, "-m", HOST, "--socket", str(path), PART
    )
    try:
        await until(path.exists, SOON_SECONDS)
        async with serving(checkpoint, str(path)) as service:
            assert await service.answer()
            service.process.terminate()
            assert await service.process.wait() == 0
        assert await host.wait() == 0
    finally:
        if host.returncode is None:
            host.kill()
            await host.wait()
