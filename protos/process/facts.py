"""Facts as people read them: a line each, in columns."""

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


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Returns a line for each row; a column is as wide as the longest of its cells."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (map(str.ljust, row, widths) for row in rows)
    return "".join("  ".join(cells).rstrip() + "\n" for cells in padded)
