"""The ways in which a guided output may go on."""

from __future__ import annotations

from copy import copy
from typing import Protocol

import torch
from llguidance import LLMatcher

from llm_service.engines.call_mark import CallMark


class Branch(Protocol):
    """One language, and the place of an output in it."""

    def fill(self, row: torch.Tensor) -> bool:
        """Sets the bits of the tokens that may come next, clears others, and says if it may end.

        Args:
            row: [ceil(vocabulary_size / 32)] int32 on the CPU, contiguous; filled.
        """
        ...

    def after(self, token_id: int) -> Branch | None:
        """Returns the branch in which a token leads on; None where it leads nowhere."""
        ...

    def copy(self) -> Branch:
        """Returns one at the same place, which goes on alone: some 5 microseconds."""
        ...

    def error(self) -> str:
        """Returns what llguidance says of a branch that ended; empty if nothing."""
        ...


class GrammarBranch:
    """What llguidance matches."""

    def __init__(self, matcher: LLMatcher, allowed: torch.Tensor) -> None:
        """Takes a matcher of its own, and the bits of the tokens that its language may hold."""
        self._matcher = matcher
        self._allowed = allowed

    def fill(self, row: torch.Tensor) -> bool:
        self._matcher.unsafe_compute_mask_ptr(row.data_ptr(), row.numel() * row.element_size())
        row &= self._allowed
        return self._matcher.is_accepting()

    def after(self, token_id: int) -> Branch | None:
        return self if self._matcher.consume_token(token_id) else None

    def copy(self) -> GrammarBranch:
        branch = copy(self)
        branch._matcher = self._matcher.deep_copy()
        return branch

    def error(self) -> str:
        return self._matcher.get_error()


class TextBranch:
    """Any text, and calls of tools after it."""

    def __init__(self, mark: CallMark, calls: GrammarBranch) -> None:
        self._mark = mark
        self._calls = calls
        self._count = 0

    def fill(self, row: torch.Tensor) -> bool:
        row.copy_(self._mark.open_to_calls[self._count])
        return True

    def after(self, token_id: int) -> Branch | None:
        after = self._mark.after(self._count, token_id)
        if isinstance(after, int):
            self._count = after
            return self
        branch: Branch | None = self._calls
        for token_id in after:
            branch = branch and branch.after(token_id)
        return branch

    def copy(self) -> TextBranch:
        branch = copy(self)
        branch._calls = self._calls.copy()
        return branch

    def error(self) -> str:
        return self._calls.error()


class InsteadBranch(GrammarBranch):
    """What llguidance matches, as long as it does not begin as a call of a tool does."""

    def __init__(self, matcher: LLMatcher, allowed: torch.Tensor, mark: CallMark) -> None:
        super().__init__(matcher, allowed)
        self._mark = mark
        self._count: int | None = 0

    def fill(self, row: torch.Tensor) -> bool:
        may_end = super().fill(row)
        if self._count is not None:
            row &= self._mark.without_calls[self._count]
        return may_end

    def after(self, token_id: int) -> Branch | None:
        if self._count is not None:
            self._count = self._mark.prefix_after(self._count, token_id)
        return None if self._count == self._mark.length else super().after(token_id)
