"""Which engine the settings name: the one place that knows all of them."""

from __future__ import annotations

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import LLMEngine
from llm_service.settings import Settings
from llm_service.tokenizer import Tokenizer


def create_engine(settings: Settings, config: LLMConfig, tokenizer: Tokenizer) -> LLMEngine:
    """Loads the checkpoint into the engine that the settings name and warms it by a real step.

    The tokenizer says which bytes a token stands for, which guided decoding needs. Blocks for as
    long as that takes; call it from a worker thread.

    Raises:
        CheckpointError: the weights do not fit the config.
        EngineStartError: the engine cannot run here.
    """
    match settings.engine:
        case "torch":
            from llm_service.engines.torch.launch import start_engine

            return start_engine(settings, config, tokenizer)
        case "tensorrt_llm":
            from llm_service.engines import tensorrt_llm

            return tensorrt_llm.start_engine(settings, config, tokenizer)


def serves_callers(settings: Settings) -> bool:
    """Returns whether the engine would serve callers in this process.

    Under mpirun the tensorrt_llm engine does so in rank 0 alone: elsewhere `create_engine` ends the
    process once rank 0 has done its work.

    Raises:
        EngineStartError: as create_engine.
    """
    match settings.engine:
        case "torch":
            return True
        case "tensorrt_llm":
            from llm_service.engines import tensorrt_llm

            return tensorrt_llm.is_leader()
