"""Each request has exactly one line in the usage log, whatever happens to everybody else."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fakes import MODEL
from tests.replicas.fleet import Fleet, Kind, Program, running_fleet, scripted
from tests.replicas.scripted import Manner
from tests.replicas.talks import CHAT, picture_part, text_part
from tests.replicas.test_changes import becomes_true

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("addresses")]
REQUEST_COUNT = 1000
CLIENT_COUNT = 40
SLOW = Manner(word_count=50, seconds=1.0)
PATIENCE_SECONDS = 30.0


@dataclass
class Sent:
    """What became of requests, by their ids.

    Attributes:
        statuses: of those whose answer came to its end.
        left: those whose client went away when the answer had begun.
        broken: those whose connection ended; nobody knows whether the gateway had read them.
    """

    statuses: dict[str, int] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)

    @property
    def accepted(self) -> set[str]:
        """Those that a gateway has certainly taken in."""
        return {*self.statuses, *self.left}


@asynccontextmanager
async def fleet_with(usage: Path, folder: Path) -> AsyncIterator[Fleet]:
    """Yields two gateways that share a usage log, and the services behind them."""
    programs: dict[Kind, list[Program]] = {
        "vision": [scripted("vision")],
        "llm": [scripted("llm")] * 2,
    }
    arguments = [f"--usage-log={usage}", "--drain-seconds=2", "--log-level=error"]
    async with running_fleet(
        folder, programs, gateway_count=2, gateway_arguments=arguments
    ) as fleet:
        yield fleet


def body_of(number: int) -> bytes:
    """Returns a request of one of many kinds, two of which are refused."""
    kind = number % 10
    if kind == 0:
        return b'{"model": '
    text = f"Tell me {number}, in {SLOW}" if kind in (1, 2) else f"Tell me {number}"
    parts = [text_part(text)]
    if kind in (3, 4):
        parts.append(picture_part(f"picture {number}"))
    body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": parts}]}
    body["stream"] = kind % 2 == 1
    if kind == 5:
        body["model"] = "another"
    if kind == 6:
        body["n"] = 99
    return json.dumps(body).encode()


async def send(http: aiohttp.ClientSession, number: int, sent: Sent) -> None:
    """Sends a request; every tenth client leaves when its stream has begun."""
    request_id = f"usage.{number}"
    headers = {"x-request-id": request_id, "Content-Type": "application/json"}
    try:
        async with http.post(CHAT, data=io.BytesIO(body_of(number)), headers=headers) as response:
            if number % 10 == 1:
                await response.content.readany()
                sent.left.add(request_id)
                response.close()
            else:
                await response.read()
                sent.statuses[request_id] = response.status
    except aiohttp.ClientError:
        sent.broken.add(request_id)


@asynccontextmanager
async def load(fleet: Fleet, count: int) -> AsyncIterator[tuple[Sent, asyncio.Task[None]]]:
    """Sends so many requests to the gateways in turn, and yields what becomes of them."""
    sent, numbers = Sent(), iter(range(count))
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(PATIENCE_SECONDS)

    async def client() -> None:
        for number in numbers:
            await send(https[number % 2], number, sent)

    async def all_of_them() -> None:
        await asyncio.gather(*(client() for _ in range(CLIENT_COUNT)))

    https = [
        aiohttp.ClientSession(url, connector=connector, timeout=timeout, connector_owner=False)
        for url in fleet.urls
    ]
    sending = asyncio.create_task(all_of_them())
    try:
        yield sent, sending
    finally:
        sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending
        for http in https:
            await http.close()
        await connector.close()


async def until(sent: Sent, count: int) -> None:
    """Waits until so many requests have ended."""
    await becomes_true(lambda: len(sent.accepted) >= count)


def entries(*files: Path) -> list[dict[str, Any]]:
    """Returns the lines of all files; each must be JSON."""
    return [
        json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()
    ]


def check(lines: list[dict[str, Any]], sent: Sent) -> None:
    """Checks that each request that was taken in has one line, which says what its client saw."""
    counts = Counter(line["request_id"] for line in lines)
    assert sent.accepted - counts.keys() == set()
    assert {one for one, count in counts.items() if count > 1} == set()
    assert counts.keys() <= sent.accepted | sent.broken
    by_id = {line["request_id"]: line for line in lines}
    told = {request_id: by_id[request_id]["status"] for request_id in sent.statuses}
    assert told == sent.statuses
    # What broke off before the client left says so.
    ends = {by_id[request_id]["outcome"] for request_id in sent.left}
    assert ends <= {"client_gone", "ok", "SERVICE_UNAVAILABLE"}


@pytest.mark.slow
async def test_each_request_has_one_line(tmp_path: Path) -> None:
    """A service is killed and comes again, the file is rotated twice, and the gateways drain."""
    usage, first, second = (tmp_path / name for name in ("usage", "usage.2", "usage.1"))
    async with fleet_with(usage, tmp_path) as fleet, load(fleet, REQUEST_COUNT) as (sent, sending):
        await until(sent, 200)
        usage.rename(first)
        await fleet.kill(fleet.llm[0])
        await until(sent, 400)
        await fleet.start(fleet.llm[0])
        usage.rename(second)
        for gateway in fleet.gateways:
            os.kill(gateway.pid, signal.SIGHUP)
        await until(sent, 800)
        assert not sending.done()
        for gateway in fleet.gateways:
            gateway.terminate()
        for gateway in fleet.gateways:
            await asyncio.to_thread(gateway.wait_ended)
            assert gateway.returncode == 0
        await sending
    lines = entries(first, second, usage)
    check(lines, sent)
    assert all(entries(file) for file in (first, second, usage))
    outcomes = Counter(line["outcome"] for line in lines)
    assert outcomes["client_gone"] > 10
    assert outcomes["INVALID_FIELD"] > 100
    assert outcomes["NOT_FOUND"] > 50
    assert outcomes["ok"] > 300
    assert outcomes["SERVICE_UNAVAILABLE"], "the drain and the kill have hurt nobody"


@pytest.mark.slow
async def test_a_killed_gateway_has_a_line_of_each_request_that_was_answered(
    tmp_path: Path,
) -> None:
    usage = tmp_path / "usage"
    async with fleet_with(usage, tmp_path) as fleet, load(fleet, REQUEST_COUNT) as (sent, sending):
        await until(sent, 300)
        for gateway in fleet.gateways:
            await fleet.kill(gateway)
        await sending
    assert sent.broken, "nothing was in flight"
    left, sent.left = sent.left, set()  # their lines may be lost: they had no end yet
    sent.broken |= left
    check(entries(usage), sent)
    assert len(sent.statuses) > 200
