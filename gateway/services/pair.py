"""The two services as a pair: each request needs halves of one checkpoint."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from gateway.services.llm import LLMClient
from gateway.services.llm import ModelInfo as LLMInfo
from gateway.services.routing import SEARCH_COUNT, salted
from gateway.services.vision import ModelInfo as VisionInfo
from gateway.services.vision import VisionClient
from protos.errors import ModelMismatchError

logger = structlog.get_logger()


@dataclass(frozen=True)
class Match:
    """What a replica of each service runs, which fits the other's."""

    vision: VisionInfo
    llm: LLMInfo


class ServicePair:
    """Compares what the vision service and the LLM service run.

    Rows of another model's projector often have the right length, and mean nothing to the language
    model: its answers would be wrong without a sign. While a checkpoint is being replaced, each
    service has replicas of both, and each request gets two that fit.

    Attributes:
        vision, llm: the two.
    """

    def __init__(self, vision: VisionClient, llm: LLMClient, *, allows_mismatch: bool) -> None:
        """Compares nothing yet.

        Args:
            vision: the vision service.
            llm: the LLM service.
            allows_mismatch: whether different checkpoints are only warned of, while their rows are
                of one length.
        """
        self.vision = vision
        self.llm = llm
        self._allows_mismatch = allows_mismatch
        self._allowed = ""
        self._latest: Match | None = None

    async def latest(self, deadline: float) -> Match:
        """Returns what fitted when it was last asked for.

        Raises:
            ModelMismatchError: nothing fits.
        """
        if self._latest:
            return self._latest
        llm = await self.llm.model_info(deadline)
        vision = await self._vision_of(llm, deadline)
        if self.mismatch(vision, llm):
            async with aclosing(self._found(secrets.token_hex(4), deadline)) as found:
                return (await anext(found))[0]
        self._latest = Match(vision, llm)
        return self._latest

    async def matches(self, key: str, deadline: float) -> AsyncGenerator[tuple[Match, str], None]:
        """Yields pairs that should fit, each with a key that leads to its LLM replica.

        The first is what fitted last. If the replica turns out to run something else, the next is
        what that runs; then what other replicas run.

        Raises:
            ModelMismatchError: nothing else fits.
        """
        yield await self.latest(deadline), key
        async for found in self._found(key, deadline):
            yield found

    async def check(self, deadline: float) -> None:
        """Raises ModelMismatchError unless a replica of one service fits one of the other."""
        async with aclosing(self._found(secrets.token_hex(4), deadline)) as found:
            await anext(found)

    async def _found(self, key: str, deadline: float) -> AsyncGenerator[tuple[Match, str], None]:
        mismatches: dict[LLMInfo, str] = {}
        for number in range(SEARCH_COUNT):
            llm = await self.llm.ask_model_info(deadline, found := salted(key, number))
            if llm in mismatches:
                continue
            vision = await self._vision_of(llm, deadline)
            if mismatch := self.mismatch(vision, llm):
                mismatches[llm] = mismatch
                continue
            self._latest = Match(vision, llm)
            yield self._latest, found
        raise ModelMismatchError(next(iter(mismatches.values()), "the services change their model"))

    def forget(self) -> None:
        """Makes the next request ask what runs: something has changed."""
        self._latest = None

    async def _vision_of(self, llm: LLMInfo, deadline: float) -> VisionInfo:
        """Returns what a vision replica runs, if possible one that fits."""
        vision = await self.vision.ask_model_info(deadline)
        for _ in range(SEARCH_COUNT - 1):
            if not self.mismatch(vision, llm):
                break
            vision = await self.vision.ask_model_info(deadline)
        return vision

    def mismatch(self, vision: VisionInfo, llm: LLMInfo) -> str:
        """Returns a sentence that says in what the two do not fit; empty if they do.

        The first time that it is allowed, it is logged.
        """
        if vision.hidden_size != llm.hidden_size:
            return (
                f"the vision service's rows have length {vision.hidden_size}, the LLM's"
                f" {llm.hidden_size}: they run different checkpoints"
            )
        differences = vision.checkpoint.differences(llm.checkpoint)
        if not differences:
            return ""
        sentence = (
            f"the vision service serves {vision.model}, the LLM service {llm.model}, and they"
            f" differ in {', '.join(differences.values())}: start both with one checkpoint"
        )
        return sentence if not self._allows_mismatch else self._allow(sentence)

    def _allow(self, sentence: str) -> str:
        if sentence != self._allowed:
            logger.warning("checkpoints_differ", warning=sentence)
            self._allowed = sentence
        return ""
