"""The LLM service refuses at once what would wait too long, and serves everybody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from llm_service.engines.base import EngineLoad, Request, TokenOutput
from llm_service.metrics import Metrics
from protos.errors import InvalidArgumentError, OverloadedError
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc
from protos.process.backlog import MIN_RETRY_SECONDS
from tests.idle_engine import IdleEngine
from tests.integration.llm_calls import END, exchange, serving, start, text_of
from tests.integration.scrapes import scrape
from tests.real_tokenizers import real_tokenizer

PATIENCE_SECONDS = 30


class OneAtATime(IdleEngine):
    """Answers one sequence after the other, and none while it is held."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.sequence_count = 0
        self._turn = asyncio.Lock()

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        self.sequence_count += 1
        try:
            async with self._turn:
                await self.go.wait()
                yield TokenOutput([40], None)
                yield TokenOutput([END], "stop")
        finally:
            self.sequence_count -= 1

    def load(self) -> EngineLoad:
        running = min(1, self.sequence_count)
        waiting = self.sequence_count - running
        return EngineLoad(running, waiting, 100, 100, startable_sequence_count=1 - running)


@dataclass
class Service:
    """A service around such an engine."""

    engine: OneAtATime
    stub: llm_pb2_grpc.LLMServiceAsyncStub
    metrics: Metrics

    async def load(self) -> llm_pb2.GetLoadResponse:
        return await self.stub.GetLoad(llm_pb2.GetLoadRequest())

    def ask(self, count: int) -> list[asyncio.Task[list[llm_pb2.GenerateResponse]]]:
        return [asyncio.create_task(exchange(self.stub, start())) for _ in range(count)]

    async def teach_its_pace(self) -> None:
        """Has three sequences wait for a moment, and be answered."""
        self.engine.go.clear()
        answers = self.ask(3)
        await until(lambda: self.engine.sequence_count == 3)
        await asyncio.sleep(0.2)
        self.engine.go.set()
        await asyncio.gather(*answers)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    engine = OneAtATime()
    metrics = Metrics(engine)
    async with serving(engine, real_tokenizer("qwen2_5"), metrics=metrics) as channel:
        yield Service(engine, llm_pb2_grpc.LLMServiceStub(channel), metrics)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(PATIENCE_SECONDS * 100):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not come to that")


async def test_what_would_wait_too_long_is_refused_at_once_and_told_for_how_long(
    service: Service,
) -> None:
    assert (await service.load()).backlog_seconds == 0
    await service.teach_its_pace()
    service.engine.go.clear()
    answers = service.ask(6)
    await until(lambda: service.engine.sequence_count == 6)
    bound, after = 0.05, 0.0
    for images in ([], ["cat"]):
        before = await service.load()
        with pytest.raises(OverloadedError, match="this one may wait 0.05; try again") as caught:
            await exchange(service.stub, start(images=images, max_queue_seconds=bound))
        after = (await service.load()).backlog_seconds
        assert caught.value.retry_after is not None
        assert before.backlog_seconds > bound + MIN_RETRY_SECONDS
        assert before.backlog_seconds <= caught.value.retry_after + bound <= after
    assert service.engine.sequence_count == 6
    told = await scrape(service.metrics.registry, "internvl_llm_")
    assert told["refusals_total/QUEUE_FULL"] == 2
    assert told["waiting_sequences"] == 5
    assert told["backlog_seconds"] >= after
    patient = asyncio.create_task(exchange(service.stub, start(max_queue_seconds=3600.0)))
    service.engine.go.set()
    assert {text_of(answer) for answer in await asyncio.gather(*answers, patient)} == {"I"}


async def test_an_idle_service_refuses_nobody_however_slow_it_was(service: Service) -> None:
    await service.teach_its_pace()
    assert (await service.load()).backlog_seconds == 0
    assert text_of(await exchange(service.stub, start(max_queue_seconds=0.0)))


async def test_cancelled_requests_leave_no_backlog(service: Service) -> None:
    await service.teach_its_pace()
    service.engine.go.clear()
    answers = service.ask(4)
    await until(lambda: service.engine.sequence_count == 4)
    assert (await service.load()).backlog_seconds > 0
    for answer in answers:
        answer.cancel()
    await asyncio.gather(*answers, return_exceptions=True)
    await until(lambda: not service.engine.sequence_count)
    assert (await service.load()).backlog_seconds == 0


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
async def test_a_bound_that_is_no_time_is_refused(service: Service, seconds: float) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await exchange(service.stub, start(max_queue_seconds=seconds))
    assert caught.value.field == "max_queue_seconds"


async def test_requests_that_come_at_the_same_time_see_each_other(service: Service) -> None:
    await service.teach_its_pace()  # of 15 in a second at most
    service.engine.go.clear()
    burst = [
        asyncio.create_task(exchange(service.stub, start(max_queue_seconds=0.5))) for _ in range(40)
    ]
    await until(lambda: sum(answer.done() for answer in burst) >= 30)
    service.engine.go.set()
    answers = await asyncio.gather(*burst, return_exceptions=True)
    served = [answer for answer in answers if isinstance(answer, list)]
    assert {text_of(answer) for answer in served} == {"I"}
    assert sum(isinstance(answer, OverloadedError) for answer in answers) == 40 - len(served)
    assert 1 <= len(served) <= 10
