"""How far a long step is: one line on stderr, rewritten on a terminal, seldom repeated elsewhere.

Written by hand because no package of the service's own environment draws a bar.
"""

from __future__ import annotations

from typing import TextIO

from llm_service.engines.tensorrt_llm.build.quantities import in_bytes

LOG_STEP_PERCENT = 10


class Progress:
    """The line of one step."""

    def __init__(self, label: str, byte_count: int, stream: TextIO) -> None:
        """Starts at nothing done of `byte_count`, which is at least 1."""
        self._label = label
        self._byte_count = byte_count
        self._stream = stream
        self._done = 0
        self._percent = 0

    def advance(self, byte_count: int) -> None:
        """Adds bytes that are done, and rewrites the line when the percentage changes."""
        self._done += byte_count
        step = 1 if self._stream.isatty() else LOG_STEP_PERCENT
        percent = 100 * self._done // self._byte_count // step * step
        if percent > self._percent:
            self._percent = percent
            self._write()

    def _write(self) -> None:
        start = "\r" if self._stream.isatty() else ""
        end = "" if self._stream.isatty() and self._percent < 100 else "\n"
        total = in_bytes(self._byte_count)
        self._stream.write(f"{start}{self._label}: {self._percent:3}% of {total}{end}")
        self._stream.flush()
