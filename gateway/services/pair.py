"""The two services as a pair: they must run halves of one checkpoint."""

from __future__ import annotations

import asyncio

import structlog

from gateway.services.llm import LLMClient
from gateway.services.llm import ModelInfo as LLMInfo
from gateway.services.vision import ModelInfo as VisionInfo
from gateway.services.vision import VisionClient
from protos.errors import ModelMismatchError

logger = structlog.get_logger()


class ServicePair:
    """Compares what the vision service and the LLM service run.

    Rows of another model's projector often have the right length, and mean nothing to the language
    model: its answers would be wrong without a sign.

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

    async def model_infos(self, deadline: float) -> tuple[VisionInfo, LLMInfo]:
        """Returns what the two ran when they were last asked; both are asked if that does not fit.

        Raises:
            ModelMismatchError: it still does not.
        """
        infos = await self.vision.model_info(deadline), await self.llm.model_info(deadline)
        if self.mismatch(*infos):  # perhaps one of them was replaced since
            infos = await asyncio.gather(
                self.vision.ask_model_info(deadline), self.llm.ask_model_info(deadline)
            )
            if mismatch := self.mismatch(*infos):
                raise ModelMismatchError(mismatch)
        return infos

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
