"""How the tokens of one request are chosen, and when it ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from protos.errors import InvalidArgumentError

if TYPE_CHECKING:
    from llm_service.tools.base import Envelope, ToolDefinition

MIN_SEED, MAX_SEED = -(2**63), 2**63 - 1
MAX_LOGPROB_COUNT = 20


@dataclass(frozen=True)
class Guide:
    """A language that the whole output must belong to.

    Attributes:
        kind: what `source` is: nothing for any JSON object, else a JSON Schema as JSON text, a
            regular expression, or a grammar.
        source: the text; empty for "json_object".
    """

    kind: Literal["json_object", "json_schema", "regex", "grammar"]
    source: str = ""


@dataclass(frozen=True)
class ToolCalls:
    """The language of one call of a tool, or more in a row.

    Attributes:
        envelope: what stands around each.
        tools: all of the prompt's, as far as a guide needs them.
        names: of those that may be called.
        is_single: whether there is no more than one call.
    """

    envelope: Envelope
    tools: tuple[ToolDefinition, ...]
    names: frozenset[str]
    is_single: bool = False

    @property
    def callable_tools(self) -> dict[int, ToolDefinition]:
        """Those that may be called, by their places among all."""
        return {i: tool for i, tool in enumerate(self.tools) if tool.name in self.names}


@dataclass(frozen=True)
class ToolCallGuide:
    """What the whole output must be where it may hold calls of tools.

    Attributes:
        calls: the calls.
        is_required: whether the output is calls alone.
        instead: what else it may be, if they are not required; None: any text, and calls after it.
    """

    calls: ToolCalls
    is_required: bool
    instead: Guide | None = None

    @property
    def allows_text(self) -> bool:
        """Whether the output may begin with any text."""
        return not self.is_required and self.instead is None


OutputGuide = Guide | ToolCallGuide


@dataclass(frozen=True)
class SamplingParams:
    """The sampling options of one request, checked on construction.

    Attributes:
        temperature: 0 (greedy) to 2.
        top_p: keep the most probable tokens up to this mass, 0 to 1; 0 keeps the most probable one.
        top_k: keep this many most probable tokens, >= 1; None keeps all.
        min_p: keep tokens at least this probable relative to the best, 0 to 1.
        seed: makes sampling repeatable, -2^63 <= seed < 2^63; None draws one.
        repetition_penalty: divides positive and multiplies negative logits of tokens seen in the
            prompt's text or the output, 0 < penalty <= 10.
        presence_penalty: subtracted from logits of tokens seen in the output, -2 to 2.
        frequency_penalty: subtracted once for each occurrence in the output, -2 to 2.
        max_tokens: most tokens to generate, >= 1, within what the context leaves; None: all of it.
        min_tokens: before so many tokens none of `stop_token_ids` is generated, >= 0.
        stop_token_ids: tokens that end the output, the checkpoint's own end tokens included.
        logit_bias: pairs of token id and what is added to its logit, -100 to 100.
        logprob_count: how many alternatives' log probabilities come with each token, 0 to 20; None
            gives none, not even the chosen token's.
        wants_prompt_logprobs: whether the prompt's tokens have as many, too.
        guide: what the output must be; None leaves it free.

    Raises:
        InvalidArgumentError: an option is out of its range; `field` is its path in the contract.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_tokens: int | None = None
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprob_count: int | None = None
    wants_prompt_logprobs: bool = False
    guide: OutputGuide | None = None

    def __post_init__(self) -> None:
        _check_range("sampling.temperature", "the temperature", self.temperature, 0, 2)
        _check_range("sampling.top_p", "top-p", self.top_p, 0, 1)
        _check_least("sampling.top_k", "top-k", self.top_k, 1)
        _check_range("sampling.min_p", "min-p", self.min_p, 0, 1)
        _check_range("sampling.seed", "the seed", self.seed or 0, MIN_SEED, MAX_SEED)
        penalty = "sampling.repetition_penalty", "the repetition penalty"
        _check_positive(*penalty, self.repetition_penalty, 10)
        penalty = "sampling.presence_penalty", "the presence penalty"
        _check_range(*penalty, self.presence_penalty, -2, 2)
        penalty = "sampling.frequency_penalty", "the frequency penalty"
        _check_range(*penalty, self.frequency_penalty, -2, 2)
        _check_least("stop.max_token_count", "the limit of output tokens", self.max_tokens, 1)
        _check_least(
            "stop.min_token_count", "the least number of output tokens", self.min_tokens, 0
        )
        _check_least("stop.token_ids", "a stop token's id", min(self.stop_token_ids, default=0), 0)
        for index, (token_id, bias) in enumerate(self.logit_bias):
            field = f"sampling.logit_bias[{index}].bias"
            _check_range(field, f"the bias of token {token_id}", bias, -100, 100)
        top_count = "logprobs.top_count", "the number of alternatives to a token"
        _check_range(*top_count, self.logprob_count or 0, 0, MAX_LOGPROB_COUNT)

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0 or self.top_p == 0

    @property
    def unsigned_seed(self) -> int | None:
        """The seed's 64 bits as a number >= 0: generators drop the sign, or take none."""
        return None if self.seed is None else self.seed % 2**64

    @property
    def is_plain(self) -> bool:
        """Whether the next token is the best logit's, and nothing else is asked for."""
        is_free = not (self.logit_bias or self.has_penalties or self.min_tokens or self.guide)
        return self.is_greedy and is_free and self.logprob_count is None

    @property
    def has_filters(self) -> bool:
        """Whether only some of the most probable tokens are drawn from."""
        return self.top_k is not None or self.top_p < 1 or self.min_p > 0

    @property
    def has_penalties(self) -> bool:
        """Whether the tokens so far change the logits."""
        penalties = (self.repetition_penalty - 1, self.presence_penalty, self.frequency_penalty)
        return any(penalties)


# The comparisons are written so that NaN fails them.
def _check_range(field: str, name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise _refusal(field, name, value, f"{low} to {high}")


def _check_positive(field: str, name: str, value: float, high: float) -> None:
    if not 0 < value <= high:
        raise _refusal(field, name, value, f"above 0 and at most {high}")


def _check_least(field: str, name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise _refusal(field, name, value, f"at least {least}")


def _refusal(field: str, name: str, value: object, limit: str) -> InvalidArgumentError:
    # A float comes from a float32, which has six digits.
    shown = f"{value:.6g}" if isinstance(value, float) else value
    return InvalidArgumentError(f"{name} is {shown}; it must be {limit}", field=field)
