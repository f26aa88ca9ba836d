"""The random numbers of one sequence."""

from __future__ import annotations

from random import Random


class RandomNumbers:
    """One number for each token of an output, whatever else is in its batch.

    A token that is sampled again, because the first one did not count, has the same number again.
    """

    def __init__(self, seed: int | None) -> None:
        self._source = Random(seed)  # noqa: S311 - samples
        self._drawn: list[float] = []
        self._place = 0

    def random(self) -> float:
        """Returns the next token's number, from 0 to below 1."""
        while len(self._drawn) <= self._place:
            self._drawn.append(self._source.random())
        self._place += 1
        return self._drawn[self._place - 1]

    def go_to(self, place: int) -> None:
        """Makes a token the next one; 0 is the output's first."""
        self._place = place
