"""Requests about pictures that come again."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.benchmarks.crossover.workload import Photo, Workload, new_head

# Returns the name of the picture of request number so and so.
Pick = Callable[[random.Random, int], str]


@dataclass(frozen=True)
class NamedPictures(Workload):
    """Requests of one picture each; a name stands for the same picture in all of them.

    Attributes:
        pick: names the pictures.
    """

    pick: Pick

    def pictures(self, chance: random.Random, number: int) -> list[tuple[bytes, Photo]]:
        """See Workload."""
        picture = random.Random(f"{self.seed} {self.pick(chance, number)}")
        return [(new_head(picture), picture.choice(self.photos))]


def half_as_many(request_count: int) -> Pick:
    """Returns what draws from half as many pictures as there are requests."""
    return lambda chance, _: f"one of few {chance.randrange(request_count // 2)}"


def one_hot(chance: random.Random, number: int) -> str:
    """Names the same picture for half of the requests, and a new one for each of the others."""
    return "hot" if chance.random() < 0.5 else f"new {number}"
