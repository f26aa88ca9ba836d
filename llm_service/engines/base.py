"""The language model engines: token ids and a prompt table in, a stream of token ids out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from msgspec import Struct

from llm_service.engines.pacing import UNPACED, Pacing
from llm_service.sampling import OutputGuide, SamplingParams
from protos.errors import UnavailableError
from protos.identity import EmbeddingId

if TYPE_CHECKING:
    import torch

FinishReason = Literal["stop", "length"]


def dtype_name(dtype: torch.dtype) -> str:
    """Returns an element type's name in options, e.g. "bfloat16"."""
    return str(dtype).removeprefix("torch.")


class EngineStartError(Exception):
    """The engine cannot run here: one sentence that names what stands in the way."""


class RowsNeededError(UnavailableError):
    """The KV cache does not hold what rows became that the prompt table lacks."""


@dataclass(frozen=True)
class ImageRows:
    """Consecutive rows of a prompt table that are one image's embedding.

    Attributes:
        embedding_id: names the rows' values.
        row_count: how many rows.
        is_held: whether the table has their values. Without them the prompt can be read only while
            the KV cache holds what they became.
    """

    embedding_id: EmbeddingId
    row_count: int
    is_held: bool = True


@dataclass(frozen=True)
class Prompt:
    """A prompt whose images are already embedded.

    Attributes:
        token_ids: at least one. An id below the vocabulary size is a token; vocabulary_size + row
            is a virtual token, which stands for that row of the prompt table. Rows are consecutive
            over the whole prompt.
        prompt_table: [rows, hidden_size], any float dtype, on the CPU.
        images: the images in order; their row counts add up to the table's rows.
        cache_salt: prompts share KV cache only with those of the same salt.
        field: path of the contract's field that holds the prompt, for refusals.
    """

    token_ids: list[int]
    prompt_table: torch.Tensor
    images: tuple[ImageRows, ...] = ()
    cache_salt: str = ""
    field: str = ""


@dataclass(eq=False)
class Account:
    """Whose a sequence is: what all sequences of one request share, and use up together.

    Attributes:
        sequence_count: those that are in the engine; the event loop's.
        mask_count: masks that its guide has given; the thread's that uses them, as the next.
        mask_seconds: CPU time that these masks have taken.
        latest_mask_seconds: that of the latest; published by the thread that computed it.
        started_at: when the engine began with the first of them, on the clock of `time.monotonic`;
            None before, and for ever where it does not tell. It is there before the first output.
    """

    sequence_count: int = 0
    mask_count: int = 0
    mask_seconds: float = 0.0
    latest_mask_seconds: float = 0.0
    started_at: float | None = None

    def start(self, moment: float) -> None:
        """Notes that the engine has begun with a sequence, of which the first one counts."""
        if self.started_at is None:
            self.started_at = moment


@dataclass(frozen=True)
class Request:
    """What one sequence is to be.

    Attributes:
        prompt: what its tokens follow.
        params: how they are chosen, and when to stop.
        priority: of waiting sequences those with the highest come first; of these one whose
            account has the fewest running, then the oldest.
        deadline: when the output must be complete, on the clock of `time.monotonic`; None leaves
            the time free.
        account: one for all choices of a request, which compete with others as one.
        pacing: how often its output is given out; tokens that come faster are given together.
    """

    prompt: Prompt
    params: SamplingParams
    priority: int = 0
    deadline: float | None = None
    account: Account = field(default_factory=Account, compare=False)
    pacing: Pacing = field(default=UNPACED, compare=False)


class TokenLogprob(Struct, frozen=True):
    """The natural logarithm of one token's probability, and of its most probable alternatives'.

    Attributes:
        token_id: the token.
        logprob: after penalties, bias and guide, before filters; before the temperature, but for
            the tensorrt_llm engine's.
        top: token ids and log probabilities of the most probable tokens, best first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, eq=False)
class LogprobTable:
    """Log probabilities of N consecutive tokens of a prompt, each after all tokens before it.

    They are the model's own: nothing that the request asks for changes them. A table takes a tenth
    of the memory of as many TokenLogprobs.

    Attributes:
        token_ids: the tokens.
        logprobs: [N, 1 + K] float32, on the CPU: the token's, then the most probable ones', best
            first.
        top: [N, K] int64, on the CPU: which those are.
    """

    token_ids: list[int]
    logprobs: torch.Tensor
    top: torch.Tensor

    def parts(self, size: int) -> Iterator[list[TokenLogprob]]:
        """Yields so many tokens at a time."""
        for begin in range(0, len(self.token_ids), size):
            rows = slice(begin, begin + size)
            columns = self.token_ids[rows], self.logprobs[rows].tolist(), self.top[rows].tolist()
            yield [
                TokenLogprob(token_id, chosen, tuple(zip(top, best, strict=True)))
                for token_id, (chosen, *best), top in zip(*columns, strict=True)
            ]


class TokenOutput(Struct, frozen=True):
    """What an engine's step added to a sequence, or what several steps did.

    Attributes:
        token_ids: the new tokens, an ending token included.
        finish_reason: set on the last output, None before: "stop" after one of the request's stop
            tokens, "length" at max_tokens or at the end of the context.
        cached_token_count: prompt tokens whose KV cache was reused.
        logprobs: one for each new token if the request asks for them, else empty.
        prompt_logprobs: those of the prompt's next tokens, from its second one on, if the request
            asks for them. They come before the first token, in outputs of their own.
    """

    token_ids: list[int]
    finish_reason: FinishReason | None
    cached_token_count: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: LogprobTable | None = None

    def by_token(self) -> list[TokenOutput]:
        """Returns an output of each token; itself where it has no more than one."""
        if len(self.token_ids) < 2:
            return [self]
        last = len(self.token_ids) - 1
        return [
            TokenOutput(
                [token_id],
                self.finish_reason if index == last else None,
                self.cached_token_count,
                self.logprobs[index : index + 1],
            )
            for index, token_id in enumerate(self.token_ids)
        ]


@dataclass(frozen=True)
class StepTotals:
    """What an engine's steps have come to since it was started.

    Attributes:
        step_count: steps.
        seconds: how long they took.
        token_count: tokens of prompts and outputs that they computed.
    """

    step_count: int = 0
    seconds: float = 0.0
    token_count: int = 0

    def after(self, seconds: float, token_count: int) -> StepTotals:
        """Returns the totals after one more step."""
        return StepTotals(
            self.step_count + 1, self.seconds + seconds, self.token_count + token_count
        )


@dataclass(frozen=True)
class DraftTotals:
    """What an engine's drafts of tokens have come to since it was started.

    Attributes:
        drafted_token_count: those that steps have verified.
        accepted_token_count: those of them that were right.
    """

    drafted_token_count: int = 0
    accepted_token_count: int = 0

    def after(self, drafted_count: int, accepted_count: int) -> DraftTotals:
        """Returns the totals after one sequence's drafts more."""
        return DraftTotals(
            self.drafted_token_count + drafted_count, self.accepted_token_count + accepted_count
        )


@dataclass(frozen=True)
class HostCacheLoad:
    """What an engine keeps in host memory of what its KV cache has dropped.

    Attributes:
        used_token_count: tokens that it holds.
        total_token_count: tokens that it has room for.
        loaded_token_count: tokens that went back to the KV cache so far.
        evicted_token_count: tokens that made room for others so far.
    """

    used_token_count: int
    total_token_count: int
    loaded_token_count: int
    evicted_token_count: int


@dataclass(frozen=True)
class EngineLoad:
    """The engine's load at one moment.

    Attributes:
        running_sequence_count: sequences being generated.
        waiting_sequence_count: sequences waiting for room.
        free_kv_token_count: tokens that fit into the free part of the KV cache.
        total_kv_token_count: tokens that fit into the whole KV cache.
        startable_sequence_count: sequences that would start at once, if they came now; those that
            the engine has not looked at yet are among them. 0 when any waits that it has.
        preemption_count: how often a sequence gave its room back so far, to be computed anew
            later; None for an engine that does not tell.
        steps: those so far.
        drafts: those so far; None for an engine that makes none.
        host_cache: that beside the KV cache; None where there is none.
    """

    running_sequence_count: int
    waiting_sequence_count: int
    free_kv_token_count: int
    total_kv_token_count: int
    steps: StepTotals = StepTotals()
    startable_sequence_count: int = 0
    preemption_count: int | None = None
    drafts: DraftTotals | None = None
    host_cache: HostCacheLoad | None = None


class LLMEngine(Protocol):
    """A warm language model. Its methods are called from one event loop, `load` from any thread."""

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its output together."""
        ...

    def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        """Yields the tokens that follow the request's prompt, as its pacing gives them out.

        Closing the generator cancels the sequence: its memory is free within one engine step.

        Raises:
            InvalidArgumentError: a token id or a stop token id does not exist, there is none, or
                the guide is no valid schema, expression or grammar, or takes too long to follow.
            InvalidTensorError: the prompt table is not [rows, hidden_size].
            ContextLengthError: the prompt leaves no room for a token within context_length.
            OverloadedError: too many sequences wait already, or too many guides to be compiled.
            RowsNeededError: an image's rows are not held, and the KV cache does not replace them;
                before the first output, unless the cache has dropped them since.
            DeadlineError: the deadline has passed.
            EngineDeadError: the engine has failed or is closed.
        """
        ...

    async def check_guide(self, guide: OutputGuide) -> None:
        """Compiles a guide, which is kept for requests, and says what is wrong with it.

        Raises:
            InvalidArgumentError: the guide is no valid schema, expression or grammar, or none that
                this engine follows: what `generate` would say.
            OverloadedError: too many guides wait to be compiled, or the machine is too busy to.
            EngineDeadError: the engine is closed.
        """
        ...

    def load(self) -> EngineLoad:
        """Returns the engine's load at this moment."""
        ...

    def is_healthy(self) -> bool:
        """Returns whether the engine still works."""
        ...

    async def close(self) -> None:
        """Ends every sequence with EngineDeadError and frees the engine."""
        ...
