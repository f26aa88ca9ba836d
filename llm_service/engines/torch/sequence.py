"""One request inside the engine: its tokens, its blocks of the KV cache, how far it has come."""

from __future__ import annotations

from array import array
from enum import Enum, auto
from typing import TYPE_CHECKING

from llm_service.engines.base import Account, FinishReason, Prompt
from llm_service.engines.torch.drafts import Drafter
from llm_service.engines.torch.prefix import PrefixDigests
from llm_service.engines.torch.random_numbers import RandomNumbers
from llm_service.sampling import SamplingParams
from protos.errors import ServiceError

if TYPE_CHECKING:
    from llm_service.engines.guides import TokenMatcher
    from llm_service.engines.torch.block_copies import Moment
    from llm_service.engines.torch.mask import Mask


class Status(Enum):
    """Where a sequence is in its life."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


class Sequence:
    """A prompt and its output so far; owned by the engine's thread once it is added.

    Attributes:
        prompt: what it began with.
        params: how its tokens are chosen.
        is_plain: what they say of that: the sampler asks in every step.
        matcher: which tokens may come next; None where all may.
        mask: the matcher's for the next token, on its way or there; None without a matcher.
        order: sequences with a smaller one come first: by priority, then by arrival.
        account: whose it is.
        token_ids: prompt, then output; ids from the vocabulary size on are virtual tokens.
        length: how many they are with those in flight, drafts aside.
        drafter: guesses its next tokens; None where they are not to be guessed, or no more.
        drafts: guesses of the tokens after all those, for the next step to verify.
        verified: the drafts of the step in flight.
        prompt_length: how many of the tokens are the prompt.
        random: this sequence's own numbers, so that a seed gives the same tokens whatever else is
            in the batch.
        slot: its place among the running sequences; stays its own while it runs.
        block_table: the KV cache blocks that it holds, in token order.
        registered_count: leading blocks of those that other sequences may share.
        computed_count: leading tokens whose keys and values are in the cache, or will be once the
            steps in flight have run.
        scheduled_count: tokens after those that the present step computes.
        is_held_back: whether the present step leaves its last token to a later one, which has the
            mask of the next.
        required_count: leading tokens that the cache must hold: rows among them are not held.
        cached_count: prompt tokens that were in the cache when the sequence was first admitted;
            None before.
        shared_count: leading tokens that were in the cache when it was last admitted.
        arrival: when all of these are there that come from the host cache; None once a step waits
            for it, or nothing comes.
        trusts_cache: whether it may use what others have computed.
        void_count: tokens in flight that do not count.
        unscored_count: last tokens of the prompt whose log probabilities are wanted, and not
            computed by any step so far.
        fault: what the engine has ended it for; None as a rule.
        history: marks its row of the TokenHistories; None until penalties look at it.
        finish_reason: why it ended; None while it goes on.
    """

    def __init__(
        self,
        prompt: Prompt,
        params: SamplingParams,
        max_tokens: int,
        vocabulary_size: int,
        *,
        order: tuple[int, int] = (0, 0),
        matcher: TokenMatcher | None = None,
        account: Account | None = None,
        max_draft_count: int = 0,
    ) -> None:
        self.prompt = prompt
        self.params = params
        self.is_plain = params.is_plain
        self.matcher = matcher
        self.mask: Mask | None = None
        self.order = order
        self.account = account or Account()
        self.token_ids = list(prompt.token_ids)
        self.length = len(self.token_ids)
        self.drafter = self._drafter(max_draft_count, vocabulary_size)
        self.drafts: list[int] = []
        self.verified: list[int] = []
        self.prompt_length = len(prompt.token_ids)
        self.random = RandomNumbers(params.unsigned_seed)
        self.status = Status.WAITING
        self.slot = -1
        self.block_table = array("i")
        self.registered_count = 0
        self.computed_count = 0
        self.scheduled_count = 0
        self.is_held_back = False
        self.required_count = _required_count(prompt, vocabulary_size)
        self.cached_count: int | None = None
        self.shared_count = 0
        self.arrival: Moment | None = None
        self.trusts_cache = True
        self.void_count = 0
        self.unscored_count = self.prompt_length - 1 if params.wants_prompt_logprobs else 0
        self.fault: ServiceError | None = None
        self.history: object | None = None
        self.finish_reason: FinishReason | None = None
        self._matched_count = self.prompt_length
        self._max_length = self.prompt_length + max_tokens
        self._digests = PrefixDigests(prompt, vocabulary_size)
        self._block_digests: list[bytes | None] = []

    @property
    def pending_count(self) -> int:
        """Tokens after the known ones that steps in flight sample, drafts aside."""
        return self.length - len(self.token_ids)

    @property
    def output_length(self) -> int:
        """Tokens generated, those in flight included."""
        return self.length - self.prompt_length

    @property
    def uncomputed_count(self) -> int:
        """Tokens whose keys and values are not in the cache yet."""
        return self.length - self.computed_count

    @property
    def needed_length(self) -> int:
        """Tokens that it needs blocks for: drafts as well."""
        return self.length + len(self.drafts)

    @property
    def is_ready(self) -> bool:
        """Whether the next step can compute tokens of it at once."""
        return self.is_ready_on_arrival and not self.is_arriving

    @property
    def is_ready_on_arrival(self) -> bool:
        """Whether the next step can compute tokens of it, be it after waiting for its arrival.

        Not after its last token. A matcher, and a new admission, must know the token in flight. A
        mask that is slow must be there before the token that it is for is sampled. How many tokens
        drafts in flight become is not known.
        """
        if self.length >= self._max_length or self.verified:
            return False
        if self.status is Status.WAITING:
            return not self.pending_count
        if self.matcher is None:
            return True
        return not (self.pending_count or (self.awaits_mask and self.uncomputed_count == 1))

    @property
    def is_arriving(self) -> bool:
        """Whether blocks of its prefix are still on their way from the host cache."""
        return self.arrival is not None and not self.arrival.has_come

    @property
    def awaits_mask(self) -> bool:
        """Whether it cannot be sampled until its mask has come, however long that takes."""
        return self.mask is not None and self.mask.is_slow and not self.mask.has_come

    @property
    def is_sampled(self) -> bool:
        """Whether the present step reaches the last token, whose logits give the next one."""
        return self.scheduled_count == self.uncomputed_count + len(self.drafts)

    @property
    def scored_places(self) -> range:
        """Places among the present step's tokens whose logits are the next token's scores."""
        last = self.prompt_length - 1
        end = self.computed_count + self.scheduled_count
        return range(max(self.computed_count, last - self.unscored_count), min(end, last))

    @property
    def failure(self) -> ServiceError | None:
        """Why it cannot go on; None while it can."""
        return self.fault or (None if self.matcher is None else self.matcher.failure)

    @property
    def has_ended(self) -> bool:
        """Whether it gets no more tokens."""
        return self.finish_reason is not None or self.failure is not None

    def block_digest(self, index: int, block_size: int) -> bytes | None:
        """Returns the digest of one full block of known tokens; None if it has none."""
        while index >= len(self._block_digests):
            start = len(self._block_digests) * block_size
            digest = self._digests.next(self.token_ids[start : start + block_size])
            self._block_digests.append(digest)
        return self._block_digests[index]

    def await_arrival(self) -> None:
        """Has the device's next step wait for blocks that are on their way."""
        if self.arrival is not None:
            self.arrival.hold()
            self.arrival = None

    def mark_launched(self) -> None:
        """Counts the step's tokens as computed, and the one that it samples as in flight."""
        if self.unscored_count:
            self.unscored_count -= len(self.scored_places)
        if self.is_held_back:
            self.computed_count -= 1 + len(self.drafts)
        else:
            self.length += self.is_sampled
            self.verified, self.drafts = self.drafts, []
        self.computed_count += self.scheduled_count
        self.scheduled_count = 0
        self.is_held_back = False

    def guess(self) -> None:
        """Has the next step verify drafts, where it is worth it and a step can."""
        is_early = self.output_length < self.params.min_tokens
        if self.drafter is None or self.verified or is_early or self.status is not Status.RUNNING:
            return
        self.drafts = self.drafter.guess(self.pending_count, self._max_length - self.length - 1)

    def append(self, token_id: int) -> None:
        """Adds the token that was in flight and decides whether it is the last."""
        self.token_ids.append(token_id)
        if token_id in self.params.stop_token_ids:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self._max_length:
            self.finish_reason = "length"

    def extend(self, token_ids: list[int]) -> int:
        """Adds the token that was in flight, and those after it whose drafts were right.

        Args:
            token_ids: what one step has sampled: its token, then one after each of its drafts.

        Returns:
            How many were added. The last token of all is never a draft.
        """
        self.append(token_ids[0])
        if self.pending_count or not self.verified:
            return 1
        drafts, self.verified = self.verified, []
        count = 1
        for draft, token_id in zip(drafts, token_ids[1:], strict=False):
            if draft != self.token_ids[-1]:
                break
            self.length += 1
            self.append(token_id)
            count += 1
        if self.drafter is not None:
            self.drafter.learn(count - 1)
        self.computed_count = min(self.computed_count, self.length - 1)
        self.random.go_to(self.output_length)
        return count

    def take_unmatched(self) -> list[int]:
        """Returns the output's tokens that its matcher has not been given yet."""
        token_ids = self.token_ids[self._matched_count :]
        self._matched_count = len(self.token_ids)
        return token_ids

    def drop(self) -> None:
        """Leaves out the token that was in flight."""
        self.length -= 1
        self.void_count = max(0, self.void_count - 1)

    def start_over(self) -> None:
        """Goes back to the tokens that it has, to be computed by its own work alone, undrafted."""
        self.void_count = self.pending_count
        self.trusts_cache = False
        self.history = None
        self.drafter = None
        self.drafts, self.verified = [], []
        self.random.go_to(len(self.token_ids) - self.prompt_length)

    def _drafter(self, max_count: int, vocabulary_size: int) -> Drafter | None:
        """Returns none for penalties, which look at all tokens before the one that they change."""
        if not max_count or self.params.has_penalties:
            return None
        return Drafter(self.token_ids, vocabulary_size, self.params.stop_token_ids, max_count)


def _required_count(prompt: Prompt, vocabulary_size: int) -> int:
    """Returns how far into the prompt the last row reaches that is not held."""
    end_row = required = 0
    for image in prompt.images:
        end_row += image.row_count
        if not image.is_held:
            required = prompt.token_ids.index(vocabulary_size + end_row - 1) + 1
    return required
