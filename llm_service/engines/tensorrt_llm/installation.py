"""Which TensorRT-LLM this machine has, and whether it has what the engine needs."""

from __future__ import annotations

import importlib

from llm_service.engines.base import EngineStartError

SUPPORTED = "1.2.1 is supported, 1.3.0rc20 is the last version that runs TensorRT engines"


def check_installation() -> None:
    """Refuses a machine without TensorRT-LLM, or with one that has no engine executor any more.

    Raises:
        EngineStartError: with what is installed and what is supported.
    """
    try:
        package = importlib.import_module("tensorrt_llm")
        bindings = importlib.import_module("tensorrt_llm.bindings.executor")
    except ImportError as error:
        raise EngineStartError(
            f"engine is tensorrt_llm, but TensorRT-LLM cannot be imported ({error}); {SUPPORTED}"
        ) from error
    if not hasattr(bindings, "Executor"):
        raise EngineStartError(
            f"TensorRT-LLM {package.__version__} has no tensorrt_llm.bindings.executor.Executor;"
            f" {SUPPORTED}"
        )


def is_leader() -> bool:
    """Returns whether this process is rank 0, the only one under mpirun that serves an engine.

    Raises:
        EngineStartError: as check_installation.
    """
    check_installation()
    rank: int = importlib.import_module("tensorrt_llm").mpi_rank()
    return rank == 0
