"""FirstFit: what is taken is apart, and goes to the first gap."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from protos.process.first_fit import FirstFit


class TakenParts(RuleBasedStateMachine):
    """FirstFit against a list of bytes."""

    SIZE = 40

    def __init__(self) -> None:
        super().__init__()
        self.parts = FirstFit(self.SIZE)
        self.owners = [0] * self.SIZE
        self.begins: dict[int, int] = {}
        self.taken_count = 0

    @rule(byte_count=st.integers(1, SIZE + 1))
    def take(self, byte_count: int) -> None:
        gaps = (begin for begin in range(self.SIZE) if self._is_free(begin, byte_count))
        expected = next(gaps, None)
        assert self.parts.take(byte_count) == expected
        if expected is not None:
            self.taken_count += 1
            self.begins[self.taken_count] = expected
            self.owners[expected : expected + byte_count] = [self.taken_count] * byte_count

    @rule(number=st.integers(0, SIZE))
    def give_back(self, number: int) -> None:
        if self.begins:
            owner = sorted(self.begins)[number % len(self.begins)]
            self.parts.give_back(self.begins.pop(owner))
            self.owners = [0 if other == owner else other for other in self.owners]

    @invariant()
    def has_no_more_than_its_bytes(self) -> None:
        assert len(self.owners) == self.SIZE

    def _is_free(self, begin: int, byte_count: int) -> bool:
        return self.owners[begin : begin + byte_count] == [0] * byte_count


TestFirstFit = TakenParts.TestCase
