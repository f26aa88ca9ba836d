"""Facts as people read them: a line each, names in a column."""

from __future__ import annotations

from collections.abc import Sequence

Facts = Sequence[tuple[str, str]]


def column_width(*names: str) -> int:
    """Returns the width of a column that has all of the names."""
    return 2 + max(map(len, names))


def aligned(facts: Facts, width: int | None = None) -> str:
    """Returns a line for each fact; the values begin at `width`, by default behind all names."""
    width = width or column_width(*(name for name, _ in facts))
    return "".join(f"{name:<{width}}{value}\n" for name, value in facts)
