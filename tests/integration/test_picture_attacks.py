"""Images that are made to hurt, four at once: they are refused, and others are served meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import time
from collections.abc import Callable
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2

from protos.errors import ImageTooLargeError, InvalidImageError, ServiceError, UnavailableError
from protos.status import from_rpc_error
from tests import hostile_pictures as hostile
from tests.integration.test_vision_service import (
    CHECKPOINT,
    HIDDEN_SIZE,
    TOKENS_PER_TILE,
    Client,
    running,
    started_process,
)
from tests.unit.vision_service.fakes import FakeEngine, encoded, picture
from tests.unit.vision_service.workers import until, worker_pids

# Decoded on threads, each of these keeps all of them for 25 s and more, on two cores.
HONEST_SECONDS = 10.0
SERVING = health_pb2.HealthCheckResponse.SERVING
ATTACKS: dict[str, tuple[Callable[[], bytes], str]] = {
    "scans": (hostile.progressive_jpeg, "over 32 scans; the limit is 32"),
    "fill bytes": (hostile.filled_jpeg, "over 4096 bytes between its segments"),
    "runs": (hostile.run_length_bmp, "run-length coded BMP of 18001078 bytes"),
    "chunks": (hostile.chunky_png, "over 65536 chunks"),
    "tall": (hostile.tall_png, "2x20000000 pixels; the limit of an edge is 65535"),
}


def engine() -> FakeEngine:
    return FakeEngine(TOKENS_PER_TILE, HIDDEN_SIZE)


async def outcome(client: Client, data: bytes) -> ServiceError | None:
    """Returns what an image is refused with; None when it is encoded."""
    try:
        await client.encode(data)
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    return None


async def honest_seconds(client: Client, seed: int) -> float:
    """Returns how long the service takes for an ordinary image, and sees that it is ready."""
    answer = await client.health.Check(health_pb2.HealthCheckRequest())
    assert answer.status == SERVING
    started = time.monotonic()
    await client.encode(encoded(picture(300, 200, seed)))
    return time.monotonic() - started


async def test_attacks_are_refused_and_delay_nobody() -> None:
    async with running(engine(), preprocess_worker_count=2) as client:
        await honest_seconds(client, 0)
        for seed, (name, (make, complaint)) in enumerate(ATTACKS.items(), start=1):
            data = await asyncio.to_thread(make)
            # Not the same file four times: that would be decoded once.
            calls = [asyncio.create_task(outcome(client, data + bytes([n]))) for n in range(4)]
            assert await honest_seconds(client, seed) < HONEST_SECONDS, name
            started = time.monotonic()
            for error in await asyncio.gather(*calls):
                assert isinstance(error, InvalidImageError | ImageTooLargeError)
                assert re.search(complaint.replace("18001078", r"180010\d\d"), error.message)
            assert time.monotonic() - started < HONEST_SECONDS, name


async def test_slow_large_images_leave_a_worker_to_others() -> None:
    """Within all limits, and slow: half of the workers are not for them."""
    async with running(engine(), preprocess_worker_count=2) as client:
        data = await asyncio.to_thread(hostile.progressive_jpeg, scan_count=20)
        calls = [asyncio.create_task(outcome(client, data + bytes([n]))) for n in range(4)]
        await honest_seconds(client, 1)
        pending = [call for call in calls if not call.done()]
        assert len(pending) >= 3
        for call in pending:
            call.cancel()


async def test_a_worker_killed_while_it_decodes_fails_one_image() -> None:
    async with running(engine(), preprocess_worker_count=1) as client:
        await honest_seconds(client, 1)
        (pid,) = worker_pids()
        os.kill(pid, signal.SIGSTOP)
        call = asyncio.create_task(outcome(client, encoded(picture(300, 200, 2))))
        await asyncio.sleep(0.5)
        os.kill(pid, signal.SIGKILL)
        assert isinstance(await call, UnavailableError)
        await honest_seconds(client, 3)


async def test_health_says_so_while_workers_are_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    # The kill does not help, as with a process that the kernel cannot let go of.
    monkeypatch.setattr("vision_service.decoding.process.WALL_FACTOR", 1000.0)
    monkeypatch.setattr("vision_service.decoding.seat.WALL_FACTOR", 0.0)
    monkeypatch.setattr("vision_service.decoding.seat.END_SECONDS", 0.0)
    async with running(engine(), preprocess_worker_count=1) as client:
        await client.encode(encoded(picture(300, 200, 1)))
        (pid,) = worker_pids()
        os.kill(pid, signal.SIGSTOP)
        watch = client.health.Watch(health_pb2.HealthCheckRequest())
        call = asyncio.create_task(outcome(client, encoded(picture(300, 200, 2))))
        changes = [(await watch.read()).status]
        changes.append((await watch.read()).status)
        os.kill(pid, signal.SIGCONT)
        changes.append((await watch.read()).status)
        assert await call is None
        watch.cancel()
    assert changes == [SERVING, health_pb2.HealthCheckResponse.NOT_SERVING, SERVING]


@pytest.mark.slow
async def test_a_drain_waits_for_no_decoder() -> None:
    options = ("--port", "0", "--drain-seconds", "0.5", "--preprocess-worker-count", "2")
    with started_process("--checkpoint", str(CHECKPOINT), *options) as process:
        port = await asyncio.to_thread(serving_port, process)
        pids: list[int] = []

        def are_up() -> bool:
            pids[:] = worker_pids(process.pid)
            return len(pids) == 2

        await until(are_up)
        channel: Any
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            client = Client(channel)
            await client.encode(encoded(picture(300, 200)))
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            data = hostile.short_webp()  # may take 44 s
            calls = [asyncio.create_task(outcome(client, data + bytes([n]))) for n in range(4)]
            await asyncio.sleep(0.5)
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.communicate)
            seconds = time.monotonic() - started
            await asyncio.gather(*calls)
    assert seconds < 10
    assert process.returncode == 0
    assert not any(psutil.pid_exists(pid) for pid in pids)


def serving_port(process: Any) -> int:
    """Returns the port that a process logs when it serves."""
    lines = itertools.dropwhile(lambda line: '"serving"' not in line, process.stderr)
    found = re.search(r'"port": (\d+)', next(lines))
    assert found is not None
    return int(found[1])
