"""The two services as a pair: each request needs halves of one checkpoint."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from gateway.services.channel import NO_ANSWER
from gateway.services.llm import LLMClient
from gateway.services.llm import ModelInfo as LLMInfo
from gateway.services.routing import SEARCH_COUNT, salted
from gateway.services.vision import ModelInfo as VisionInfo
from gateway.services.vision import VisionClient
from protos.errors import ModelMismatchError, ServiceError, UnavailableError

logger = structlog.get_logger()
# Replicas that are asked for a name that is not known, beside the last that was: few, as clients
# make names up.
NAME_SEARCH_COUNT = 6


@dataclass(frozen=True)
class Match:
    """What an LLM replica runs, and a vision replica that fits it; None where none is needed."""

    llm: LLMInfo
    vision: VisionInfo | None = None


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

    async def llm_info(self, name: str, deadline: float) -> LLMInfo:
        """Returns what an LLM replica runs that answers to a name, when it was last asked.

        Raises:
            NotFoundError: none does.
        """
        info = await self.llm.model_info(deadline, name)
        for _ in range(NAME_SEARCH_COUNT):
            if info.serves(name):
                break
            info = await self.llm.ask_model_info(deadline)  # perhaps another one is served now
        info.check_serves(name)
        return info

    async def vision_info(self, name: str, deadline: float) -> VisionInfo:
        """Returns what a vision replica runs that fits an LLM replica of this name; as `matches`.

        Raises:
            ModelMismatchError: none does.
        """
        async with aclosing(self.matches(name, secrets.token_hex(4), deadline)) as matches:
            match, _ = await anext(matches)
        assert match.vision
        return match.vision

    async def matches(
        self, name: str, key: str, deadline: float, *, with_vision: bool = True
    ) -> AsyncGenerator[tuple[Match, str], None]:
        """Yields what should fit, each with a key that leads to its LLM replica.

        First comes what fitted last. If the replica turns out to run something else, the next is
        what that runs; then what other replicas run.

        Args:
            name: what the LLM replica must answer to.
            key: leads to the replica that is asked first.
            deadline: when it must be over, in the event loop's time.
            with_vision: whether a vision replica must fit, too.

        Raises:
            ModelMismatchError: nothing else fits.
            NotFoundError: nothing answers to the name any more.
            UnavailableError: what was found each time was another one a moment later.
        """
        if not with_vision:
            yield Match(await self.llm_info(name, deadline)), key
        elif known := await self._known(name, deadline):
            yield known, key
        async for found in self._searched(name, key, deadline, with_vision=with_vision):
            yield found

    async def check(self, deadline: float) -> None:
        """Raises ModelMismatchError unless a replica of one service fits one of the other."""
        key = secrets.token_hex(4)
        async with aclosing(self._searched("", key, deadline, with_vision=True)) as found:
            await anext(found)

    async def _searched(
        self, name: str, key: str, deadline: float, *, with_vision: bool
    ) -> AsyncGenerator[tuple[Match, str], None]:
        mismatches: dict[LLMInfo, str] = {}
        failure: ServiceError | None = None
        for number in range(SEARCH_COUNT):
            try:
                llm = await self.llm.ask_model_info(deadline, found := salted(key, number))
            except NO_ANSWER as error:
                failure = error
                continue
            if not llm.serves(name) or llm in mismatches:
                continue
            vision = await self._vision_of(llm, deadline) if with_vision else None
            if vision and (mismatch := self.mismatch(vision, llm)):
                mismatches[llm] = mismatch
                continue
            match = Match(llm, vision)
            self._latest = match if vision else self._latest
            yield match, found
        for mismatch in mismatches.values():
            raise ModelMismatchError(mismatch)
        if failure:
            raise failure
        self.llm.forget(name)
        (await self.llm.model_info(deadline)).check_serves(name)
        raise UnavailableError("the services are changing their model; try again", retry_after=1)

    async def _known(self, name: str, deadline: float) -> Match | None:
        """Returns what fitted last, or what fits as far as is known without a search."""
        if not self._latest or not self._latest.llm.serves(name):
            llm = await self.llm_info(name, deadline)
            vision = await self.vision.ask_model_info(deadline)
            self._latest = None if self.mismatch(vision, llm) else Match(llm, vision)
        return self._latest

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
