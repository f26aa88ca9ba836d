"""Drafts: guesses of a sequence's next tokens, which one step verifies together."""

from __future__ import annotations

from collections.abc import Collection
from itertools import takewhile

# So many tokens must have stood before for what followed them to be a guess.
LOOKUP_LENGTH = 3
# What a step with drafts takes longer than one without, in steps: it is not prepared while the
# device works, and its graph is a larger one.
STEP_COST = 1.0
# So often drafts may cost that for nothing.
LOST_STEP_SHARE = 1 / 40
# Steps: what drafts have saved lets them fail so often at the end of what repeats.
MAX_CREDIT = 4.0


class TokenLookup:
    """What followed a sequence's last tokens where they stood before, the latest time.

    The work is in proportion to the tokens that are new.
    """

    def __init__(self, token_ids: list[int]) -> None:
        """Takes the sequence's own list, which grows."""
        self._token_ids = token_ids
        self._places: dict[tuple[int, ...], int] = {}
        self._next_place = LOOKUP_LENGTH

    def continuation(self, begin: int, end: int) -> list[int]:
        """Returns guesses of the tokens `begin` to `end` after the last one; or none.

        Where it comes to the last token itself, what repeats is taken to go on.
        """
        token_ids = self._token_ids
        self._index()
        place = self._places.get(tuple(token_ids[-LOOKUP_LENGTH:]))
        if place is None:
            return []
        period = len(token_ids) - place
        return [token_ids[place + index % period] for index in range(begin, end)]

    def _index(self) -> None:
        """Notes what each token but the last one stands before."""
        end = len(self._token_ids)
        if end > self._next_place:
            before = self._token_ids[self._next_place - LOOKUP_LENGTH : end - 1]
            runs = zip(*(before[first:] for first in range(LOOKUP_LENGTH)), strict=False)
            self._places.update(zip(runs, range(self._next_place, end), strict=True))
            self._next_place = end


class Drafter:
    """The drafts of one sequence: as many as allowed while they prove right, else a pause.

    What they save beyond their cost is a credit, what they cost beyond it a debt; a debt is paid by
    steps without drafts.
    """

    def __init__(
        self,
        token_ids: list[int],
        vocabulary_size: int,
        stop_token_ids: Collection[int],
        max_count: int,
    ) -> None:
        """Takes the sequence's own list of tokens, which grows, and most drafts of a step."""
        self._lookup = TokenLookup(token_ids)
        self._vocabulary_size = vocabulary_size
        self._stop_token_ids = stop_token_ids
        self._max_count = max_count
        self._credit = 0.0

    def guess(self, pending_count: int, room: int) -> list[int]:
        """Returns drafts of the tokens after those in flight.

        Args:
            pending_count: tokens in flight, 0 or 1: the first guesses would be of those.
            room: most drafts.
        """
        if self._credit < 0:
            self._credit += LOST_STEP_SHARE * STEP_COST
            return []
        count = min(self._max_count, room)
        guessed = self._lookup.continuation(pending_count, pending_count + count)
        return list(takewhile(self._may_be_verified, guessed))

    def learn(self, accepted_count: int) -> None:
        """Takes how many drafts of a step were right."""
        self._credit = min(MAX_CREDIT, self._credit + accepted_count - STEP_COST)

    def _may_be_verified(self, token_id: int) -> bool:
        """Neither a row of an image nor a token after which there is none."""
        return token_id < self._vocabulary_size and token_id not in self._stop_token_ids
