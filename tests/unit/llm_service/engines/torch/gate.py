"""A gate before the torch engine's forward pass, which is that of TensorRT-LLM's double too."""

from __future__ import annotations

import threading

import pytest

from llm_service.engines.torch.model_runner import ModelRunner
from llm_service.engines.torch.sequence import Sequence
from llm_service.engines.torch.step_outputs import StepOutputs

PATIENCE_SECONDS = 60.0


class Gate:
    """Lets forward passes through as permitted, at first all of them.

    Attributes:
        batches: those that have come to the gate.
        entered: set when one has come since the gate was closed.
        is_broken: whether a pass that is let through fails.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[list[Sequence]] = []
        self.entered = threading.Event()
        self.is_broken = False
        self._permits = threading.Semaphore(0)
        self.open()
        run = ModelRunner.run

        def gated(runner: ModelRunner, sequences: list[Sequence]) -> StepOutputs:
            self.batches.append(list(sequences))
            self.entered.set()
            assert self._permits.acquire(timeout=PATIENCE_SECONDS)
            if self.is_broken:
                raise RuntimeError("the device is lost")
            return run(runner, sequences)

        monkeypatch.setattr(ModelRunner, "run", gated)

    def close(self) -> None:
        """Holds passes back from now on."""
        self._permits = threading.Semaphore(0)
        self.entered.clear()

    def permit(self, step_count: int) -> None:
        """Lets so many passes through, the one that waits included."""
        self._permits.release(step_count)

    def open(self) -> None:
        """Lets all passes through."""
        self.permit(10_000)
