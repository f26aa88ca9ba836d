"""What scripted LLM engines have in common: all of an LLMEngine but `generate`."""

from __future__ import annotations

from llm_service.engines.base import EngineLoad
from llm_service.sampling import OutputGuide


class IdleEngine:
    """Healthy and free for ever, with nothing to close."""

    context_length = 4096

    async def check_guide(self, guide: OutputGuide) -> None:
        pass

    def load(self) -> EngineLoad:
        return EngineLoad(0, 0, 0, 0)

    def is_healthy(self) -> bool:
        return True

    async def close(self) -> None:
        pass
