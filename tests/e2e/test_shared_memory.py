"""Embeddings in memory that the real services share: the way they take, and what a crash leaves."""

from __future__ import annotations

import base64
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from openai import InternalServerError, OpenAI
from prometheus_client.parser import text_string_to_metric_families

from gateway.local.processes import ServiceProcess
from gateway.local.stack import Stack
from protos.process.shared_memory import ALIGNMENT, NONCE_BYTE_COUNT
from tests.e2e.test_failures import PATIENCE_SECONDS, eventually, restart
from tests.e2e.test_scrapes import metrics_port
from tests.random_checkpoint import write_random_checkpoint
from tests.served_model import SCRAPED, SERVICE_ARGUMENTS
from tests.unit.vision_service.fakes import encoded, picture

CHUNKS_ALONE = ["--shared-memory-byte-count", "0"]
# For a request to come as far as the service that has been stopped.
A_WHILE_SECONDS = 1.0
NEW = count(1)


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the two services share."""
    return tmp_path_factory.mktemp("memory")


@pytest.fixture(scope="module")
def stack(memory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    checkpoint = folder / "random-internvl"
    write_random_checkpoint(checkpoint)
    shared = ("--shared-memory-folder", str(memory))
    # No notice before it ends: nobody but the gateway asks.
    arguments = (*SERVICE_ARGUMENTS, *SCRAPED, *shared, "--drain-notice-seconds", "0")
    with Stack(checkpoint, folder, service_arguments=arguments) as stack:
        yield stack
    assert not list(memory.iterdir())


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def new_picture() -> bytes:
    return encoded(picture(64, 64, seed=next(NEW)))


def answer(client: OpenAI, *images: bytes) -> str:
    urls = [f"data:image/png;base64,{base64.b64encode(image).decode()}" for image in images]
    content: list[Any] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    messages: list[Any] = [{"role": "user", "content": content}]
    completion = client.chat.completions.create(
        model="", messages=messages, max_tokens=8, temperature=0, timeout=PATIENCE_SECONDS
    )
    return completion.choices[0].message.content or ""


def way_counts(stack: Stack) -> dict[str, float]:
    """Returns how many embeddings the LLM service has got, by their way."""
    return counts(stack.llm, "internvl_llm_embeddings_total", "way")


def counts(service: ServiceProcess, metric: str, label: str) -> dict[str, float]:
    """Returns the values of a service's counter by one label."""
    with urlopen(f"http://127.0.0.1:{metrics_port(service)}/metrics", timeout=10) as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    return {
        sample.labels[label]: sample.value
        for family in families
        for sample in family.samples
        if sample.name == metric
    }


def encoded_count(stack: Stack) -> float:
    """Returns how many images the vision service has encoded."""
    return counts(stack.vision, "internvl_vision_images_total", "source")["encoded"]


def test_answers_are_those_of_chunks(stack: Stack, client: OpenAI) -> None:
    images = [new_picture() for _ in range(3)]
    before = way_counts(stack)
    answers = [answer(client, *images), answer(client, images[0])]
    assert way_counts(stack) == {**before, "shared": before["shared"] + 3}
    with only_chunks(stack):
        eventually(lambda: works(client))
        before = way_counts(stack)
        assert [answer(client, *images), answer(client, images[0])] == answers
        assert way_counts(stack) == {**before, "chunks": before["chunks"] + 3}
    eventually(lambda: works(client))


@contextmanager
def only_chunks(stack: Stack) -> Iterator[None]:
    """Starts both services anew, without shared memory at vision's end."""
    stack.vision.arguments += CHUNKS_ALONE
    stop_and_start(stack)
    try:
        yield
    finally:
        del stack.vision.arguments[-len(CHUNKS_ALONE) :]
        stop_and_start(stack)


def stop_and_start(stack: Stack) -> None:
    for service in (stack.vision, stack.llm):
        service.stop(drain_seconds=5)
        service.log.unlink()  # it tells the port of the metrics
        restart(service)


def works(client: OpenAI) -> bool:
    try:
        answer(client, new_picture())
    except InternalServerError:
        return False
    return True


class Lease:
    """The first slot of vision's file, as it lies there."""

    def __init__(self, memory: Path) -> None:
        files = [path for path in memory.iterdir() if path.stat().st_size != NONCE_BYTE_COUNT]
        self.file = max(files, key=lambda path: path.stat().st_mtime)
        self.nonce = self._nonce()

    def is_held(self) -> bool:
        """Whether the slot is still lent to the same reader."""
        return self._nonce() == self.nonce

    def _nonce(self) -> bytes:
        with self.file.open("rb") as file:
            nonce = file.read(NONCE_BYTE_COUNT)
        assert len(nonce) == NONCE_BYTE_COUNT
        return nonce


@contextmanager
def lent(stack: Stack, memory: Path, client: OpenAI) -> Iterator[tuple[Lease, Callable[[], str]]]:
    """Has vision lend a slot to an LLM service that does not read it; yields both request's ends.

    The LLM service is stopped between the moment when it asks for the embedding and that when
    vision, which is stopped until then, has made it.
    """
    count = encoded_count(stack)
    with ThreadPoolExecutor(1) as pool:
        os.kill(stack.vision.pid, signal.SIGSTOP)
        asking = pool.submit(answer, client, new_picture())
        time.sleep(A_WHILE_SECONDS)
        os.kill(stack.llm.pid, signal.SIGSTOP)
        os.kill(stack.vision.pid, signal.SIGCONT)
        try:
            eventually(lambda: encoded_count(stack) > count)
            time.sleep(A_WHILE_SECONDS)
            lease = Lease(memory)
            time.sleep(A_WHILE_SECONDS)
            assert lease.is_held()
            assert not asking.done()
            yield lease, lambda: asking.result(PATIENCE_SECONDS)
        finally:
            if stack.llm.is_alive():
                os.kill(stack.llm.pid, signal.SIGCONT)


def start_killed(service: ServiceProcess) -> None:
    service.kill()
    service.wait_ended()
    service.log.unlink()
    restart(service)


def check_all_is_well(stack: Stack, memory: Path, client: OpenAI) -> None:
    eventually(lambda: works(client))
    before = way_counts(stack)
    answer(client, new_picture(), new_picture())
    assert way_counts(stack) == {**before, "shared": before["shared"] + 2}
    files = [path.stat().st_size for path in memory.iterdir()]
    assert len(files) == 2  # vision's, and the LLM service's marker
    # What an image of one tile takes, twice: slots have been used anew.
    assert max(files) <= 2 * (ALIGNMENT + 256 * 64 * 4)


@pytest.mark.slow
def test_a_killed_gateway_gives_back_what_it_was_lent(
    stack: Stack, memory: Path, client: OpenAI
) -> None:
    with lent(stack, memory, client) as (lease, result):
        stack.gateway.kill()
        with pytest.raises(Exception, match=r"[Cc]onnection"):
            result()
        eventually(lambda: not lease.is_held())
    start_killed(stack.gateway)
    check_all_is_well(stack, memory, client)


@pytest.mark.slow
def test_a_killed_llm_service_leaves_nothing(stack: Stack, memory: Path, client: OpenAI) -> None:
    with lent(stack, memory, client) as (lease, result):
        stack.llm.kill()
        with pytest.raises(InternalServerError):
            result()
        eventually(lambda: not lease.is_held())
    assert len(list(memory.iterdir())) == 2  # one of them nobody's
    start_killed(stack.llm)
    check_all_is_well(stack, memory, client)


@pytest.mark.slow
def test_a_killed_vision_service_leaves_nothing(stack: Stack, memory: Path, client: OpenAI) -> None:
    with lent(stack, memory, client) as (lease, result):
        stack.vision.kill()
        stack.vision.wait_ended()
        assert lease.is_held()
        os.kill(stack.llm.pid, signal.SIGCONT)
        result()  # the rows are whole
    start_killed(stack.vision)
    assert not lease.file.exists()
    check_all_is_well(stack, memory, client)


@pytest.mark.slow
def test_two_services_that_see_different_folders_use_chunks(
    stack: Stack, client: OpenAI, tmp_path: Path
) -> None:
    place = stack.vision.arguments.index("--shared-memory-folder") + 1
    shared = stack.vision.arguments[place]
    stack.vision.arguments[place] = str(tmp_path)
    start_killed(stack.vision)
    try:
        eventually(lambda: works(client))
        before = way_counts(stack)
        answer(client, new_picture())
        assert way_counts(stack) == {**before, "chunks": before["chunks"] + 1}
    finally:
        stack.vision.arguments[place] = shared
        start_killed(stack.vision)
