"""How long a thread is in each of some functions, without what they call of the others."""

from __future__ import annotations

import functools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

Stages = Mapping[str, tuple[Any, str]]


class StageClock:
    """Wraps functions while it is entered, and adds up the time that a thread is in them.

    Attributes:
        seconds: of each stage, less those of the stages within it.
        cpu_seconds: the same on the thread's own clock, which stands still while another thread has
            the interpreter.
        counts: calls of each stage.
    """

    def __init__(self, stages: Stages) -> None:
        """Takes the owner and the name of each stage's function."""
        self._stages = stages
        self._patches = ExitStack()
        self._within = [[0.0, 0.0]]
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.cpu_seconds: defaultdict[str, float] = defaultdict(float)
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> StageClock:
        for stage, (owner, name) in self._stages.items():
            given = vars(owner)[name]
            wrapped: Any = self._timed(stage, getattr(given, "__func__", given))
            if isinstance(given, classmethod):
                wrapped = classmethod(wrapped)
            self._patches.enter_context(patch.object(owner, name, wrapped))
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()

    def _timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            self._within.append([0.0, 0.0])
            started, cpu_started = time.perf_counter(), time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                cpu_spent, spent = time.thread_time() - cpu_started, time.perf_counter() - started
                inner, cpu_inner = self._within.pop()
                self.seconds[stage] += spent - inner
                self.cpu_seconds[stage] += cpu_spent - cpu_inner
                self.counts[stage] += 1
                self._within[-1][0] += spent
                self._within[-1][1] += cpu_spent

        return timed
