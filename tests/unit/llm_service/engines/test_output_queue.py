"""Outputs are taken in order and whole, and no more often than their pacing lets.

The event loop's clock stands still while anything runs, and jumps to the next timer.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.engines.base import LogprobTable, TokenLogprob, TokenOutput
from llm_service.engines.output_queue import MAX_JOINED_COUNT, OutputQueue
from llm_service.engines.pacing import UNPACED, Pacing
from protos.errors import EngineDeadError, ServiceError

# What the loop adds to a timer's moment before it looks which are due.
INSTANT = 1e-6
Taken = list[tuple[float, TokenOutput]]


class JumpingSelector(selectors.SelectSelector):
    """Waits for nothing; counts how often it was to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.moment = 0.0
        self.wait_count = 0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everybody waits, and no timer is set"
        self.moment += timeout
        self.wait_count += timeout > 0
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes at once."""

    def __init__(self) -> None:
        self.clock = JumpingSelector()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.moment


def run_at_once(main: Callable[[], Awaitable[None]]) -> JumpingLoop:
    """Runs it; returns its loop."""

    async def awaited() -> None:
        await main()

    loop = JumpingLoop()
    with closing(loop):
        loop.run_until_complete(awaited())
    return loop


def now() -> float:
    return asyncio.get_running_loop().time()


def output(*token_ids: int, is_last: bool = False) -> TokenOutput:
    logprobs = tuple(TokenLogprob(token_id, -float(token_id)) for token_id in token_ids)
    return TokenOutput([*token_ids], "length" if is_last else None, 7, logprobs)


async def put_in_steps(
    queues: Sequence[OutputQueue], step_seconds: float, token_count: int
) -> None:
    for index in range(token_count):
        for queue in queues:
            queue.put(output(index, is_last=index == token_count - 1))
        await asyncio.sleep(step_seconds)


async def take_all(queue: OutputQueue, busy_seconds: float = 0) -> Taken:
    taken: Taken = []
    with closing(queue):
        while not taken or taken[-1][1].finish_reason is None:
            one = await queue.take()
            taken.append((now(), one))
            await asyncio.sleep(busy_seconds)
    return taken


def ids_of(taken: Taken) -> list[int]:
    return [token_id for _, one in taken for token_id in one.token_ids]


@pytest.mark.parametrize("step_seconds", [0.00155, 0.0003])
def test_a_stream_alone_gives_each_token_as_it_comes(step_seconds: float) -> None:
    async def main() -> None:
        queue = OutputQueue(Pacing(5000))
        taking = asyncio.create_task(take_all(queue))
        await put_in_steps([queue], step_seconds, 100)
        taken = await taking
        assert [one.token_ids for _, one in taken] == [[index] for index in range(100)]
        moments = [moment for moment, _ in taken]
        assert moments == pytest.approx([index * step_seconds for index in range(100)], abs=INSTANT)

    run_at_once(main)


@pytest.mark.parametrize("step_seconds", [0.0065, 0.0082])  # a turn takes 6.4 ms
def test_streams_whose_steps_take_longer_are_not_held_back(step_seconds: float) -> None:
    async def main() -> None:
        pacing = Pacing(5000)
        queues = [OutputQueue(pacing) for _ in range(32)]
        taking = [asyncio.create_task(take_all(queue)) for queue in queues]
        await put_in_steps(queues, step_seconds, 50)
        for taken in await asyncio.gather(*taking):
            moments = [moment for moment, _ in taken]
            assert moments == pytest.approx([i * step_seconds for i in range(50)], abs=INSTANT)

    run_at_once(main)


def test_all_streams_together_keep_to_the_bound() -> None:
    token_count, stream_count, rate, step_seconds = 400, 32, 5000, 0.00155

    async def main() -> None:
        pacing = Pacing(rate)
        queues = [OutputQueue(pacing) for _ in range(stream_count)]
        taking = [asyncio.create_task(take_all(queue)) for queue in queues]
        await put_in_steps(queues, step_seconds, token_count)
        seconds = step_seconds * token_count
        message_count = 0
        for taken in await asyncio.gather(*taking):
            assert ids_of(taken) == [*range(token_count)]
            assert taken[0][0] == 0
            assert taken[0][1].token_ids == [0]
            assert taken[-1][0] == pytest.approx(step_seconds * (token_count - 1), abs=INSTANT)
            message_count += len(taken)
        # Beside it are the last messages, the first, and those that came while few had begun.
        assert message_count <= rate * seconds + 3 * stream_count
        assert message_count > 0.9 * rate * seconds
        assert pacing.stream_count == 0

    run_at_once(main)


def test_what_is_told_of_the_prompt_comes_by_itself() -> None:
    async def main() -> None:
        queue = OutputQueue(Pacing(1))
        table = LogprobTable([5], torch.zeros(1, 1), torch.zeros(1, 0, dtype=torch.int64))
        told = TokenOutput([], None, prompt_logprobs=table)
        for one in (told, told, output(1), output(2, 3)):
            queue.put(one)
        assert await queue.take() is told
        assert await queue.take() is told
        joined = await queue.take()
        assert joined.token_ids == [1, 2, 3]
        assert [one.token_id for one in joined.logprobs] == [1, 2, 3]
        assert (joined.finish_reason, joined.cached_token_count) == (None, 7)

    run_at_once(main)


@pytest.mark.parametrize("is_over", [False, True])
def test_what_waits_for_a_slow_caller_is_no_message_without_bound(is_over: bool) -> None:
    count = 2 * MAX_JOINED_COUNT + 5

    async def main() -> None:
        with closing(OutputQueue(Pacing(1e-3))) as queue:
            for index in range(count):
                queue.put(output(index, is_last=is_over and index == count - 1))
            taken = [await queue.take() for _ in range(3)]
            assert [len(one.token_ids) for one in taken] == [MAX_JOINED_COUNT, MAX_JOINED_COUNT, 5]
            assert ids_of([(0, one) for one in taken]) == [*range(count)]
            reasons = [one.finish_reason for one in taken]
            assert reasons == [None, None, "length" if is_over else None]
            assert now() == 0

    run_at_once(main)


@pytest.mark.parametrize("end", [output(2, is_last=True), EngineDeadError("dead")])
@pytest.mark.parametrize("is_waiting", [False, True])
def test_the_end_comes_at_once_with_all_before_it(
    end: TokenOutput | ServiceError, is_waiting: bool
) -> None:
    async def main() -> None:
        with closing(OutputQueue(Pacing(1e-3))) as queue:  # the next turn is in 1,000 seconds
            queue.put(output(0))
            await queue.take()
            taking = asyncio.create_task(queue.take())
            queue.put(output(1))
            await asyncio.sleep(5)
            assert not taking.done()
            if not is_waiting:
                taking.cancel()
                await asyncio.gather(taking, return_exceptions=True)
                taking = asyncio.create_task(queue.take())
            queue.put(end)
            queue.put(output(9))  # after its end it has no more
            last = await taking
            if isinstance(end, ServiceError):
                assert last.token_ids == [1]
                with pytest.raises(EngineDeadError):
                    await queue.take()
            else:
                assert last.token_ids == [1, 2]
                assert last.finish_reason == "length"
            assert now() == pytest.approx(5, abs=INSTANT)

    run_at_once(main)


def test_nothing_runs_while_there_is_nothing_to_send() -> None:
    async def main() -> None:
        with closing(OutputQueue(Pacing(100))) as queue:
            queue.put(output(0))
            await queue.take()
            taking = asyncio.create_task(queue.take())
            await asyncio.sleep(1000)
            queue.put(output(1))
            assert (await taking).token_ids == [1]
            assert now() == pytest.approx(1000, abs=INSTANT)

    assert run_at_once(main).clock.wait_count == 1


def test_a_caller_that_waits_for_its_turn_is_cancelled_at_once() -> None:
    async def main() -> None:
        pacing = Pacing(1e-3)
        with closing(OutputQueue(pacing)) as queue:
            queue.put(output(0))
            await queue.take()
            queue.put(output(1))
            taking = asyncio.create_task(queue.take())
            await asyncio.sleep(0)
            assert pacing.stream_count == 1
            taking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await taking
        assert pacing.stream_count == 0
        assert now() == 0
        await asyncio.sleep(2000)  # its turn comes, and finds nobody

    run_at_once(main)


def test_unpaced_outputs_are_taken_as_they_come() -> None:
    async def main() -> None:
        queue = OutputQueue(UNPACED)
        for index in range(3):
            queue.put(output(index))
            assert (await queue.take()).token_ids == [index]
        queue.close()

    run_at_once(main)
    assert UNPACED.stream_count == 0


STEPS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 3), st.floats(0, 0.02)), min_size=1, max_size=60
)


@settings(deadline=None)
@given(STEPS, st.sampled_from([10, 500, 5000]), st.floats(0, 0.01))
def test_nothing_is_lost_or_reordered(
    steps: list[tuple[int, int, float]], rate: float, busy_seconds: float
) -> None:
    """Each step gives one of four streams some tokens; their callers are busy between two takes."""

    async def main() -> None:
        pacing = Pacing(rate)
        queues = [OutputQueue(pacing) for _ in range(4)]
        put: list[list[int]] = [[] for _ in queues]

        taking = [asyncio.create_task(take_all(queue, busy_seconds)) for queue in queues]
        for index, count, seconds in steps:
            token_ids = range(len(put[index]), len(put[index]) + count)
            put[index] += token_ids
            queues[index].put(output(*token_ids))
            await asyncio.sleep(seconds)
        for queue, own in zip(queues, put, strict=True):
            own.append(-1)
            queue.put(output(-1, is_last=True))
        for taken, own in zip(await asyncio.gather(*taking), put, strict=True):
            assert ids_of(taken) == own
            for _, one in taken:
                assert [logprob.token_id for logprob in one.logprobs] == one.token_ids
        assert pacing.stream_count == 0

    run_at_once(main)
