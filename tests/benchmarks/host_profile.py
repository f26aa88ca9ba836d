"""Where the time of a decode step goes: the lines a thread is in, and the calls to the GPU."""

from __future__ import annotations

import linecache
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from types import FrameType

import torch
from torch.profiler import ProfilerActivity, profile

SAMPLE_SECONDS = 0.0005
# Python's default of 5 ms would let a thread run through a whole step before it can be looked at.
SWITCH_SECONDS = 0.0001
SOURCE_WIDTH = 60


class StackSampler:
    """Notes many times a second in which line of the LLM service some threads are.

    PyTorch's calls let go of the interpreter's lock, so that a line is seen as often as it takes
    time, whether it computes on the CPU, queues work for the GPU or waits for it.

    Attributes:
        lines: how often each line was seen.
    """

    def __init__(self, threads: Collection[threading.Thread]) -> None:
        self.lines: Counter[str] = Counter()
        self._idents = [thread.ident for thread in threads]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stack-sampler")

    def __enter__(self) -> StackSampler:
        self._switch_seconds = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_SECONDS)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        sys.setswitchinterval(self._switch_seconds)

    def shares(self, count: int) -> list[tuple[str, float]]:
        """Returns the lines seen most, and their shares of all that was seen."""
        return [(line, n / self.lines.total()) for line, n in self.lines.most_common(count)]

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            frames = sys._current_frames()
            self.lines.update(_line(frames[i]) for i in self._idents if i in frames)


def _line(frame: FrameType) -> str:
    """Returns the innermost line that is ours."""
    here: FrameType | None = frame
    while here is not None and "llm_service" not in here.f_code.co_filename:
        here = here.f_back
    found = here or frame
    file = found.f_code.co_filename
    line = found.f_lineno or 0  # another thread's frame may be between two lines
    source = linecache.getline(file, line).strip()[:SOURCE_WIDTH].replace("|", "\\|")
    return f"{Path(file).name}:{line} `{source}`"


class DeviceTrace:
    """The calls to the GPU and the kernels of a while, of all threads."""

    def __init__(self) -> None:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities)

    def __enter__(self) -> DeviceTrace:
        self._profile.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._profile.stop()

    def totals(self) -> dict[str, float]:
        """Returns seconds of kernels, of the host's waits, launches, copies; and launches."""
        totals = dict.fromkeys(("kernels", "waits", "launches", "launch count", "copies"), 0.0)
        for event in self._profile.key_averages():
            if event.device_type.name == "CUDA":
                totals["kernels"] += event.self_device_time_total / 1e6
            elif kind := _kind_of_call(event.key):
                totals[kind] += event.self_cpu_time_total / 1e6
                totals["launch count"] += event.count * (kind == "launches")
        return totals


def _kind_of_call(name: str) -> str | None:
    """Returns the kind of a call of CUDA's runtime or driver, e.g. cudaStreamSynchronize."""
    if not name.startswith("cu"):
        return None
    kinds = {"Synchronize": "waits", "Launch": "launches", "Memcpy": "copies"}
    return next((kind for part, kind in kinds.items() if part in name), None)


def warm_up_trace() -> None:
    """Makes the first trace, which takes seconds to prepare."""
    with DeviceTrace():
        time.sleep(0.01)
