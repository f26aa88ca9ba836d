"""The toy model of `make demo` and `make serve`, and the program that shows it."""

from __future__ import annotations

from pathlib import Path

DEMO_CHECKPOINT = Path(__file__).parent / "checkpoint"
