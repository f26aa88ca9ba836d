"""One output of a language model, with the moments at which its tokens came."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass, field

from llm_service.engines.base import LLMEngine, Prompt, Request
from llm_service.sampling import SamplingParams


@dataclass
class Timeline:
    """Grows while its output is generated.

    Attributes:
        started: when it was asked for, of time.perf_counter.
        arrivals: when each token came, of the same clock.
        token_ids: the tokens.
        has_begun: set at the first token.
    """

    started: float = field(default_factory=time.perf_counter)
    arrivals: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    has_begun: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, token_ids: list[int]) -> None:
        """Notes tokens that have just come."""
        self.arrivals += [time.perf_counter()] * len(token_ids)
        self.token_ids += token_ids
        self.has_begun.set()

    @property
    def first_token_seconds(self) -> float:
        """Seconds from the question to the first token."""
        return self.arrivals[0] - self.started

    @property
    def seconds_per_token(self) -> float:
        """Mean seconds from one token to the next."""
        return (self.arrivals[-1] - self.arrivals[0]) / (len(self.arrivals) - 1)


async def ask(
    engine: LLMEngine, prompt: Prompt, max_tokens: int, temperature: float = 0.0
) -> Timeline:
    """Generates so many tokens, the most probable ones if the temperature is 0."""
    timeline = Timeline()
    await follow(engine, prompt, max_tokens, timeline, temperature)
    return timeline


async def follow(
    engine: LLMEngine,
    prompt: Prompt,
    max_tokens: int,
    timeline: Timeline,
    temperature: float = 0.0,
) -> None:
    """Generates into a timeline that others watch."""
    # No stop tokens: the number of tokens is the benchmark's choice.
    request = Request(prompt, SamplingParams(temperature, max_tokens=max_tokens))
    async with aclosing(engine.generate(request)) as outputs:
        async for output in outputs:
            timeline.add(output.token_ids)
