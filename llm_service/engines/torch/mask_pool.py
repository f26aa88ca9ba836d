"""The masks of guided sequences, computed beside the engine's thread.

A mask is ordered as soon as the token before it is known. Where it comes at once, as nearly all do,
the sequence has its next token in the very next step. Where it does not, the sequence sits out the
steps until it has come, and the others go on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from llm_service.engines.guides import TokenMatcher
from llm_service.engines.torch.mask import SLOW_SECONDS, Mask
from llm_service.engines.torch.sequence import Sequence

# So long a step may wait for its masks, all together.
GRACE_SECONDS = 0.005


class MaskPool:
    """Two threads: one for the masks that are quick as a rule, so that no slow one delays them."""

    def __init__(self, vocabulary_size: int, post: Callable[[Callable[[], None]], None]) -> None:
        """Starts no thread before there are masks.

        Args:
            vocabulary_size: the model's.
            post: has the engine's thread make a call, which wakes it: masks have come. The call
                raises what has broken a thread of the pool.
        """
        self._vocabulary_size = vocabulary_size
        self._post = post
        self._quick = ThreadPoolExecutor(1, "guide-masks")
        self._slow = ThreadPoolExecutor(1, "slow-guide-masks")

    def order(self, sequences: Iterable[Sequence]) -> None:
        """Has the next masks of those sequences computed that have a guide."""
        guided = [(one, one.matcher) for one in sequences if one.matcher is not None]
        if not guided:
            return
        quick: list[Mask] = []
        settled = threading.Event()
        for sequence, matcher in guided:
            sequence.mask = mask = self._mask(sequence, matcher, settled)
            if mask.is_slow:
                self._watch(self._slow.submit(mask.compute))
            else:
                quick.append(mask)
        if quick:
            self._watch(self._quick.submit(self._compute, quick, settled))

    def close(self) -> None:
        """Ends the threads, after the masks that they are at."""
        for thread in (self._quick, self._slow):
            thread.shutdown(cancel_futures=True)

    def _mask(self, sequence: Sequence, matcher: TokenMatcher, settled: threading.Event) -> Mask:
        if max(matcher.expected_seconds, matcher.ahead_seconds) > SLOW_SECONDS:
            sequence.drafts = []
        return Mask(
            matcher,
            sequence.take_unmatched(),
            sequence.drafts.copy(),
            self._vocabulary_size,
            settled,
            may_end=sequence.output_length >= sequence.params.min_tokens,
        )

    def _compute(self, masks: list[Mask], settled: threading.Event) -> None:
        for mask in masks:
            if mask.is_expected_slow:  # since another choice's mask was
                mask.is_slow = True
                self._watch(self._slow.submit(mask.compute))
            else:
                mask.compute()
        settled.set()

    def _watch(self, computed: Future[None]) -> None:
        computed.add_done_callback(lambda future: self._post(future.result))


def await_masks(sequences: Iterable[Sequence]) -> None:
    """Waits for the masks of sequences that are to be sampled, all together for a moment.

    Sequences whose masks have not come then are held back. The others' accounts are charged.
    """
    deadline = time.perf_counter() + GRACE_SECONDS
    for sequence in sequences:
        if (mask := sequence.mask) is not None:
            if not (mask.is_slow or mask.has_come):
                mask.settled.wait(max(0.0, deadline - time.perf_counter()))
            if mask.has_come:
                mask.matcher.charge()
            else:
                sequence.is_held_back = mask.is_slow = True


def mask_count(sequence: Sequence) -> int:
    """Returns after how many tokens a sequence can be sampled: its last one, and its drafts.

    After all of them without a guide. `await_masks` has waited for it.
    """
    if sequence.is_held_back:
        return 0
    count = 1 + len(sequence.drafts)
    return count if sequence.mask is None else min(count, sequence.mask.count)
