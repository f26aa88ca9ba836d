"""The images and the compose file, run for real: `make test-containers`."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.containers.composition import SERVICES, Composition
from tests.e2e.questions import Answered, Conversation, HTTPAsker, ask_all, conversations, share

pytestmark = pytest.mark.timeout(1800)  # the images are built before the first
EVERY_SERVICE = pytest.mark.parametrize("service", SERVICES)
PACKAGES = {"gateway": "gateway", "vision": "vision_service", "llm": "llm_service"}
MODEL = "internvl2.5"
# The program's end takes no time; docker's or podman's own work does, on a busy machine.
AT_ONCE_SECONDS = 5.0
# How long a gateway may take to find a container that has come.
FIND_SECONDS = 10.0
SERVING = '"event": "serving"'
# As a process of the image sees its container.
STATE = """
import errno, importlib.util, json, pathlib
lines = pathlib.Path("/proc/1/status").read_text().splitlines()
status = dict(line.split(":\\t") for line in lines)
def failure(path):
    try:
        pathlib.Path(path, "written").touch()
    except OSError as error:
        return errno.errorcode[error.errno]
names = ("gateway", "vision_service", "llm_service", "protos", "tests", "torch")
print(json.dumps({
    "first": status["Name"],
    "users": sorted(set(status["Uid"].split())),
    "capabilities": [status[name] for name in ("CapEff", "CapPrm", "CapBnd")],
    "no_new_privileges": status["NoNewPrivs"],
    "failures": [failure(path) for path in ("/", "/usr/local/lib", "/tmp")],
    "packages": [name for name in names if importlib.util.find_spec(name)],
}))
"""


@pytest.fixture
async def client(composition: Composition, port: int) -> AsyncIterator[AsyncOpenAI]:
    """The openai client at the published port, without its own retries."""
    url = f"http://127.0.0.1:{port}/v1"
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


async def answers(client: AsyncOpenAI, asked: list[Conversation]) -> list[Answered]:
    """Asks about pictures; an error is one of the test's."""
    return await ask_all(HTTPAsker(client, MODEL), asked)


def distinct(count: int) -> list[Conversation]:
    """Returns questions, each about one picture of its own."""
    asked = [one for one in conversations("tasks") if len(one.pictures) == len(one.turns) == 1]
    return list({one.pictures: one for one in asked}.values())[:count]


@EVERY_SERVICE
def test_a_container_has_no_more_than_it_needs(composition: Composition, service: str) -> None:
    completed = composition.run_in(composition.container(service), "python", "-c", STATE)
    state: dict[str, Any] = json.loads(completed.stdout)
    assert not state.pop("first").startswith(("python", "internvl"))  # an init of the engine's
    none = "0" * 16
    expected_packages = [PACKAGES[service], "protos"] + ["torch"] * (service != "gateway")
    assert state == {
        "users": ["10001"],
        "capabilities": [none] * 3,
        "no_new_privileges": "1",
        "failures": ["EROFS", "EROFS", None],
        "packages": expected_packages,
    }


@EVERY_SERVICE
def test_the_health_command_tells_whether_it_serves(composition: Composition, service: str) -> None:
    assert composition.health(composition.container(service)) == 0


@EVERY_SERVICE
def test_metrics_are_at_one_port_of_the_network(composition: Composition, service: str) -> None:
    address = f"http://{service}:9090/metrics"
    read = f"from urllib.request import urlopen; print(urlopen('{address}').read())"
    completed = composition.run_in(composition.container("gateway"), "python", "-c", read)
    assert f"internvl_{service}_" in completed.stdout, completed.stderr


async def test_questions_about_pictures_are_answered(client: AsyncOpenAI) -> None:
    assert share(await answers(client, distinct(6))) >= 90


def streamed(port: int, token_count: int) -> Iterator[str]:
    """Yields the lines of a streamed answer of so many tokens, as they come."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": token_count,
        "ignore_eos": True,
        "stream": True,
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        for line in response:
            if line.strip():
                yield line.decode().strip()


@pytest.mark.parametrize("service", ["llm", "gateway"])
def test_a_stopped_container_ends_the_stream_first(
    composition: Composition, port: int, service: str
) -> None:
    container = composition.container(service)
    lines = streamed(port, 150)  # seconds; on a busy machine still less than its drain
    next(lines)
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(composition.stop, container)
        *_, last_piece, last = lines
        seconds = stopping.result()
    status = composition.exit_status(container)
    composition.start(container)
    composition.wait_healthy()
    assert last == "data: [DONE]"
    assert '"finish_reason":"length"' in last_piece
    assert status == 0
    assert seconds > 1  # it was not over already


@EVERY_SERVICE
def test_a_container_that_still_starts_is_stopped_at_once(
    composition: Composition, service: str
) -> None:
    container = composition.container(service)
    composition.stop(container)
    served = composition.log(container).count(SERVING)
    composition.start(container)
    time.sleep(0.5)
    seconds = composition.stop(container)
    now_served = composition.log(container).count(SERVING)
    composition.start(container)
    composition.wait_healthy()
    assert now_served == served  # it had not come so far
    assert seconds < AT_ONCE_SECONDS


async def test_containers_come_and_go_while_questions_are_asked(
    composition: Composition, client: AsyncOpenAI
) -> None:
    asked = distinct(12)
    old = {service: composition.container(service) for service in ("vision", "llm")}
    for service in old:
        composition.scale(service, 2)
    composition.wait_healthy()
    await answers(client, asked[:2])
    await asyncio.sleep(FIND_SECONDS)
    answered = await answers(client, asked)
    for service in old:
        containers = composition.containers(service)
        assert len(containers) == 2
        assert all(map(composition.call_count, containers)), service

    asking = asyncio.create_task(answers(client, asked))
    await asyncio.sleep(1)
    for container in old.values():
        await asyncio.to_thread(composition.stop, container)
        assert composition.exit_status(container) == 0
    assert share(answered + await asking) >= 90
