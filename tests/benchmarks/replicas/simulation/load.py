"""What is asked: conversations about pictures, of which some come again and one may be hot."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from tests.benchmarks.replicas.simulation.model import TILE_ROW_COUNT

TILE_COUNTS = (1, 5, 7, 9, 13)
QUESTION_TOKEN_COUNTS, ANSWER_TOKEN_COUNTS = (30, 400), (32, 256)
MAX_TURN_COUNT = 4
MEAN_TURN_COUNT = (1 + MAX_TURN_COUNT) / 2
POOL_COUNT = 2000

# Returns the name of a new conversation's picture.
Pick = Callable[[random.Random, int], str]


@dataclass(frozen=True)
class Turn:
    """One request of a conversation.

    Attributes:
        conversation: its name.
        number: from 1.
        image: the picture of the first turn, which all turns bring along.
        tile_count: of the picture.
        history_token_count: text of the turns before, all of it in this prompt.
        question_token_count, answer_token_count: new text.
    """

    conversation: str
    number: int
    image: str
    tile_count: int
    history_token_count: int
    question_token_count: int
    answer_token_count: int

    @property
    def image_token_count(self) -> int:
        """Tokens of the picture, which come first."""
        return TILE_ROW_COUNT * self.tile_count

    @property
    def prompt_token_count(self) -> int:
        """Tokens of the whole prompt."""
        return self.image_token_count + self.history_token_count + self.question_token_count

    @property
    def end_token_count(self) -> int:
        """Tokens of the text when it has been answered."""
        return self.history_token_count + self.question_token_count + self.answer_token_count


def _fresh(chance: random.Random, number: int) -> str:
    return f"new {number}"


def _half(chance: random.Random, number: int) -> str:
    is_known = chance.random() < 0.5
    return f"pool {chance.randrange(POOL_COUNT)}" if is_known else f"new {number}"


def _zipf(chance: random.Random, number: int) -> str:
    return f"pool {chance.choices(range(POOL_COUNT), cum_weights=_zipf_weights())[0]}"


def _hot(chance: random.Random, number: int) -> str:
    return "hot" if chance.random() < 0.5 else f"new {number}"


@lru_cache
def _zipf_weights() -> list[float]:
    return list(accumulate(1 / rank for rank in range(1, POOL_COUNT + 1)))


LOADS: Mapping[str, Pick] = {
    "each its own": _fresh,
    "half reused": _half,
    "Zipf 1.0": _zipf,
    "one hot": _hot,
}


def conversation(chance: random.Random, number: int, pick: Pick) -> Iterator[Turn]:
    """Yields the turns of conversation number `number`."""
    image = pick(chance, number)
    tile_count = random.Random(image).choice(TILE_COUNTS)
    if image == "hot":
        tile_count = max(TILE_COUNTS)
    history = 0
    for turn_number in range(1, chance.randint(1, MAX_TURN_COUNT) + 1):
        turn = Turn(
            f"conversation {number}",
            turn_number,
            image,
            tile_count,
            history,
            chance.randint(*QUESTION_TOKEN_COUNTS),
            chance.randint(*ANSWER_TOKEN_COUNTS),
        )
        history = turn.end_token_count
        yield turn
