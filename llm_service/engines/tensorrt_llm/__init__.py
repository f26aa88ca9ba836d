"""The TensorRT-LLM engine: our prompts and options in the terms of TensorRT-LLM's C++ executor.

Where it differs from the torch engine, because the executor does:
- alternatives to a token are refused by name. So are guides, biases and a least number of tokens
  where another process than ours computes the logits: with mpi_mode orchestrator and with pipeline
  parallelism;
- logits that are not finite end a start, and later a request that asks for log probabilities;
- an image's rows are always needed: RowsNeededError whenever they are not held;
- presence and frequency penalties count the prompt's tokens too, and log probabilities are those
  after the temperature.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_service.checkpoint import LLMConfig
    from llm_service.engines.tensorrt_llm.engine import TensorRTLLMEngine
    from llm_service.settings import Settings
    from llm_service.tokenizer import Tokenizer


def start_engine(settings: Settings, config: LLMConfig, tokenizer: Tokenizer) -> TensorRTLLMEngine:
    """Loads the engine folder, runs a first request, and starts the engine's threads.

    Under mpirun only rank 0 returns. The other ranks work for it in here until it shuts down, and
    then end their process.

    Raises:
        EngineStartError: TensorRT-LLM is missing or of a wrong version, or the engine folder does
            not fit the checkpoint, the settings or this machine.
        SystemExit: this is another rank than 0, and rank 0 has shut down.
    """
    from llm_service.engines.tensorrt_llm.installation import check_installation

    check_installation()
    from llm_service.engines.tensorrt_llm import launch

    return launch.start_engine(settings, config, tokenizer)


def is_leader() -> bool:
    """Returns whether this process is rank 0, the only one under mpirun that serves callers.

    Raises:
        EngineStartError: TensorRT-LLM is missing or of a wrong version.
    """
    from llm_service.engines.tensorrt_llm import installation

    return installation.is_leader()
