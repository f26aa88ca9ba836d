"""Both services change from one checkpoint to another, replica by replica, under load.

Every answer is one that one of the two models gives by itself: never were the rows of one model's
vision tower read by the other's language model.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from llm_service.settings import Settings as LLMSettings
from llm_service.settings import TorchOptions as LLMTorchOptions
from protos.process.settings import MIB
from tests.integration.real_services import Place, running_llm, running_vision
from tests.random_checkpoint import write_random_checkpoint
from tests.replicas.fleet import KINDS, Fleet, Kind, dns_name, host_of, running_fleet
from tests.replicas.talks import Answer, Callers, callers_of, text_part
from vision_service.settings import Settings as VisionSettings
from vision_service.settings import TorchOptions as VisionTorchOptions

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

PICTURES = sorted((Path(__file__).parents[1] / "data" / "questions").glob("*.png"))[:5]
TEXT_COUNT = 7  # a text is soon answered, and its key is one more to be shared out
MODEL = "rolling"
CLIENT_COUNT = 3
# At this index no replica ever listens.
NOBODY = 7
PATIENCE_SECONDS = 20.0
POLL_SECONDS = 0.05
ORDERS: dict[str, tuple[Kind, Kind]] = {
    "vision first": ("vision", "llm"),
    "LLM first": ("llm", "vision"),
}


def _question(picture: Path) -> list[dict[str, Any]]:
    url = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    content = [text_part("What is it?"), {"type": "image_url", "image_url": {"url": url}}]
    return [{"role": "user", "content": content}]


QUESTIONS = [
    *map(_question, PICTURES),
    *([{"role": "user", "content": f"Who are you, {number}?"}] for number in range(TEXT_COUNT)),
]


def tokens_of(answer: Answer) -> str:
    """Returns the bytes of the answer's tokens: random models say little that is text."""
    assert answer.status == 200, answer.body
    logprobs = json.loads(answer.body)["choices"][0]["logprobs"]["content"]
    return " ".join(str(token["bytes"]) for token in logprobs)


class Rollout:
    """Replicas over checkpoints, that come and go one by one."""

    def __init__(self, fleet: Fleet, callers: Callers, checkpoints: dict[str, Path]) -> None:
        self.fleet = fleet
        self.callers = callers
        self._checkpoints = checkpoints
        self._running: dict[tuple[Kind, str], AsyncExitStack] = {}
        self._indexes = itertools.count()

    async def add(self, kind: Kind, model: str) -> None:
        """Starts a replica over a checkpoint, and publishes its address."""
        exits = self._running[kind, model] = AsyncExitStack()
        host = host_of(next(self._indexes) % NOBODY)
        place = Place(
            host,
            self.fleet.ports[kind],
            drain_seconds=PATIENCE_SECONDS,
            notice_seconds=1,
            connection_age_seconds=2,
        )
        folder = self._checkpoints[model]
        running = (
            running_vision(_vision_settings(folder), place)
            if kind == "vision"
            else running_llm(_llm_settings(folder), place)
        )
        await exits.enter_async_context(running)
        self.fleet.names.publish(dns_name(kind), host)
        exits.callback(self.fleet.names.withdraw, dns_name(kind), host)

    async def remove(self, kind: Kind, model: str) -> None:
        """Takes a replica's address away, and ends it once its calls have ended."""
        await self._running.pop((kind, model)).aclose()

    async def remove_all(self) -> None:
        """Ends what runs."""
        for kind, model in [*self._running]:
            await self.remove(kind, model)

    async def answers(self, name: str) -> list[str]:
        """Returns the answers to all questions, which are those of the one model that runs."""
        answers = await asyncio.gather(*(self.ask(index, name) for index in range(len(QUESTIONS))))
        return [*map(tokens_of, answers)]

    async def ask(self, index: int, name: str) -> Answer:
        """Returns the greedy answer to a question."""
        return await self.callers.ask(
            QUESTIONS[index], name, model=MODEL, temperature=0, max_tokens=6, logprobs=True
        )

    async def is_ready(self) -> None:
        """Waits until the gateway has found both services."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while {status for status, _ in await self.callers.ready()} != {200}:
            assert time.monotonic() < deadline, "the gateway does not look for new replicas"
            await asyncio.sleep(POLL_SECONDS)

    async def is_known(self, kind: Kind) -> None:
        """Waits until the gateway has looked a kind's name up twice: it has connected by then.

        It looks when a connection ends, and has one while it is used: so it is asked whether it is
        ready, as those who run it do. An LLM service that has all images leaves vision alone.
        """
        counts = self.fleet.names.question_counts
        before = counts[dns_name(kind)]
        deadline = time.monotonic() + PATIENCE_SECONDS
        while counts[dns_name(kind)] < before + 4:  # of A and of AAAA records
            assert time.monotonic() < deadline, "the gateway does not look for new replicas"
            await self.callers.ready()
            await asyncio.sleep(POLL_SECONDS)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two checkpoints of one shape."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for seed, model in enumerate("ab"):
        write_random_checkpoint(folder / model, seed=seed)
    return {model: folder / model for model in "ab"}


def _vision_settings(checkpoint: Path) -> VisionSettings:
    return VisionSettings(
        checkpoint=checkpoint,
        served_model_name=MODEL,
        preprocess_worker_count=1,
        torch=VisionTorchOptions(device="cpu", dtype="float32", thread_count=1),
    )


def _llm_settings(checkpoint: Path) -> LLMSettings:
    return LLMSettings(
        checkpoint=checkpoint,
        served_model_name=(MODEL,),
        kv_cache_byte_count=32 * MIB,
        torch=LLMTorchOptions(device="cpu", dtype="float32", thread_count=1),
    )


@pytest_asyncio.fixture(loop_scope="module")
async def rollout(
    addresses: None, checkpoints: dict[str, Path], tmp_path: Path
) -> AsyncIterator[Rollout]:
    """A gateway that knows the names of services, of which none runs yet."""
    async with running_fleet(tmp_path, {}) as fleet, callers_of(fleet.urls) as callers:
        rollout = Rollout(fleet, callers, checkpoints)
        for kind in KINDS:  # gRPC asks ever more rarely for a name without any address
            fleet.names.publish(dns_name(kind), host_of(NOBODY))
        try:
            yield rollout
        finally:
            await rollout.remove_all()


@dataclass
class Heard:
    """Answers under load: which question each one is to, and the stage of the update."""

    rollout: Rollout
    stage: str = ""
    answers: list[tuple[str, int, Answer]] = field(default_factory=list)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Heard]:
        """Asks the questions over and over for the time of the block."""
        numbers = itertools.count()
        stop = asyncio.Event()

        async def ask() -> None:
            while not stop.is_set():
                index = next(numbers) % len(QUESTIONS)
                stage = self.stage
                answer = await self.rollout.ask(index, stage)
                self.answers.append((stage, index, answer))

        clients = [asyncio.create_task(ask()) for _ in range(CLIENT_COUNT)]
        try:
            yield self
        finally:
            stop.set()
            await asyncio.gather(*clients)

    async def enter(self, stage: str) -> None:
        """Names the stage that has begun, and waits for an answer to each question in it."""
        self.stage = stage
        while {index for at, index, _ in self.answers if at == stage} != {*range(len(QUESTIONS))}:  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
async def test_each_answer_is_one_models_own(rollout: Rollout, order: str) -> None:
    kinds = ORDERS[order]
    for kind in kinds:
        await rollout.add(kind, "a")
    await rollout.is_ready()
    own = {"a": await rollout.answers("a")}
    async with Heard(rollout).listening() as heard:
        await heard.enter("old")
        for kind in kinds:
            await rollout.add(kind, "b")
            await rollout.is_known(kind)
            await heard.enter(f"{kind} added")
        for kind in kinds:
            await rollout.remove(kind, "a")
            await heard.enter(f"{kind} removed")
    own["b"] = await rollout.answers("b")
    assert [text for text in own["a"] if text in own["b"]] == []
    assert [(at, one.body) for at, _, one in heard.answers if one.status != 200] == []
    given = Counter((at, _model_of(tokens_of(one), index, own)) for at, index, one in heard.answers)
    assert not [at for at, model in given if model is None], given
    assert {model for at, model in given if at == f"{kinds[0]} removed"} >= {"b"}
    assert {model for at, model in given if at == f"{kinds[1]} added"} == {"a", "b"}
    assert {model for at, model in given if at == f"{kinds[1]} removed"} == {"b"}


def _model_of(tokens: str, index: int, own: dict[str, list[str]]) -> str | None:
    """Returns the model whose own answer to a question these are."""
    return next((model for model, answers in own.items() if answers[index] == tokens), None)
