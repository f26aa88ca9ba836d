"""TensorRT-LLM's double on the module path, as if TensorRT-LLM were installed."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from msgspec.structs import replace

import tests.doubles
from llm_service.engines.base import TokenOutput

FOLDER = next(iter(tests.doubles.__path__))
PACKAGES = ("tensorrt_llm", "llm_service.engines.tensorrt_llm")
BUILDER = "llm_service.engines.tensorrt_llm.build"  # runs without TensorRT-LLM


def spoil_log_probs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the executor's log probabilities those of logits that are NaN."""
    answer = importlib.import_module("tensorrt_llm.bindings.executor").Answer
    after = answer.after

    def broken(self: Any, output: TokenOutput) -> Any:
        nan = tuple(replace(logprob, logprob=math.nan) for logprob in output.logprobs)
        return after(self, replace(output, logprobs=nan))

    monkeypatch.setattr(answer, "after", broken)


@contextmanager
def installed_double() -> Iterator[Any]:
    """Yields the module tensorrt_llm.bindings.executor; afterwards nothing of it is left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        try:
            yield importlib.import_module("tensorrt_llm.bindings.executor")
        finally:
            for name in list(sys.modules):
                if name.startswith(PACKAGES) and not name.startswith(BUILDER):
                    del sys.modules[name]
