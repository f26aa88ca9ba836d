"""The generations of one request as one answer: their events, with the choices counted through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from itertools import accumulate

from gateway.chat import Answering
from gateway.events import ChatEvent, Usage
from gateway.generation import GenerationRequest
from gateway.services.llm import ModelInfo
from gateway.tasks import owning

# Of one request at a time; more would fill the LLM service's queue for everybody else. A generation
# of several choices counts as these.
CONCURRENT_CHOICE_COUNT = 16
# Events that nobody has read yet: a client that reads slowly holds up its own generations.
WAITING_EVENT_COUNT = 64

Ask = Callable[[GenerationRequest], Answering]
Found = tuple[ModelInfo, ChatEvent]


@asynccontextmanager
async def answering_all(
    ask: Ask, generations: Sequence[GenerationRequest]
) -> AsyncIterator[tuple[ModelInfo, AsyncGenerator[ChatEvent, None]]]:
    """Yields who answers first, and the events of all generations; the first is there.

    The usage is the last event, the sum of all. The first generation that fails ends the others.

    Args:
        ask: begins a generation.
        generations: at least one; all of as many choices.
    """
    if len(generations) == 1:
        async with ask(generations[0]) as alone:
            yield alone
        return
    found: asyncio.Queue[Found | Exception | None] = asyncio.Queue(WAITING_EVENT_COUNT)
    async with owning(asyncio.create_task(_gather(ask, generations, found))):
        first = await _next(found)
        assert first
        async with aclosing(_events(first, found)) as events:
            yield first[0], events


async def _gather(
    ask: Ask,
    generations: Sequence[GenerationRequest],
    found: asyncio.Queue[Found | Exception | None],
) -> None:
    """Puts what comes of all generations, then nothing; or the error of the first that fails."""
    choice_count = max(1, generations[0].choice_count)  # it may be wrong: the service refuses it
    slots = asyncio.Semaphore(max(1, CONCURRENT_CHOICE_COUNT // choice_count))

    async def follow(generation: GenerationRequest, first_index: int) -> None:
        async with slots, ask(generation) as (info, events):
            async for event in events:
                await found.put((info, _counted(event, first_index)))

    first_indexes = accumulate((each.choice_count for each in generations[:-1]), initial=0)
    following = [
        asyncio.create_task(follow(*entry))
        for entry in zip(generations, first_indexes, strict=True)
    ]
    try:
        async with owning(*following):
            await asyncio.gather(*following)
    except Exception as error:  # noqa: BLE001 - who reads raises it
        await found.put(error)
    else:
        await found.put(None)


def _counted(event: ChatEvent, first_index: int) -> ChatEvent:
    return event if isinstance(event, Usage) else replace(event, index=event.index + first_index)


async def _next(found: asyncio.Queue[Found | Exception | None]) -> Found | None:
    entry = await found.get()
    if isinstance(entry, Exception):
        raise entry
    return entry


async def _events(
    first: Found, found: asyncio.Queue[Found | Exception | None]
) -> AsyncGenerator[ChatEvent, None]:
    """Yields the events as they come, and the sum of the usages last."""
    total = Usage(0, 0, 0, 0)
    entry: Found | None = first
    while entry is not None:
        event = entry[1]
        if isinstance(event, Usage):
            total += event
        else:
            yield event
        entry = await _next(found)
    yield total
