"""What requests do to their logits: bias, least length, guide.

The executor calls the processor of this module between the logits of a step and its tokens, for the
requests that ask for it ("logits post-processor"). So guides are the same as in the torch engine.
The executor's own are xgrammar's, of version 0.1.32: that lets 1 pass where a schema says
"minimum": 3, ignores most keywords, and compiles in the loop of all requests, where an exception
fails all of them and an expression like (a?){1000} stops them for minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from llm_service.engines.guides import TokenMatcher
from llm_service.engines.vocabulary import unpacked
from llm_service.sampling import Guide, SamplingParams
from protos.errors import ServiceError


def constraining_option(params: SamplingParams) -> tuple[str, str] | None:
    """Returns an option by which a request asks something of its logits, as field and in words.

    None if it has none.
    """
    if isinstance(params.guide, Guide):
        return f"guided.{params.guide.kind}", "a guide"
    if params.guide is not None:
        return "guided.tool_calls", "a guide"
    if params.logit_bias:
        return "sampling.logit_bias", "a bias"
    if params.min_tokens and params.stop_token_ids:
        return "stop.min_token_count", "a least number of tokens"
    return None


class Constraint:
    """What one request asks of its logits; the executor's thread's once it is enqueued."""

    def __init__(
        self, params: SamplingParams, prompt_length: int, matcher: TokenMatcher | None
    ) -> None:
        """Takes the request's options, its prompt's tokens, and its guide's matcher if any."""
        self._params = params
        self._matcher = matcher
        self._prompt_length = prompt_length
        self._known_count = prompt_length
        biases = dict(params.logit_bias)
        self._bias_ids = torch.tensor(list(biases), dtype=torch.int64)
        self._biases = torch.tensor(list(biases.values()), dtype=torch.float32)

    @property
    def failure(self) -> ServiceError | None:
        """Why the output does not belong to the guide's language; None while it does."""
        return None if self._matcher is None else self._matcher.failure

    def apply(self, logits: torch.Tensor, token_ids: Sequence[int]) -> None:
        """Changes the logits of the next token.

        Args:
            logits: [vocabulary_size] on any device; changed.
            token_ids: all so far, prompt and output.
        """
        if len(self._biases):
            logits[self._bias_ids.to(logits.device)] += self._biases.to(logits)
        may_end = len(token_ids) - self._prompt_length >= self._params.min_tokens
        if self._matcher is not None:
            allowed = self._allowed(self._matcher, logits, token_ids, may_end)
            logits.masked_fill_(~allowed, -torch.inf)
        elif not may_end:
            logits[sorted(self._params.stop_token_ids)] = -torch.inf

    def _allowed(
        self,
        matcher: TokenMatcher,
        logits: torch.Tensor,
        token_ids: Sequence[int],
        may_end: bool,
    ) -> torch.Tensor:
        """Returns [vocabulary_size] bool, on the logits' device."""
        new_token_ids = token_ids[self._known_count :]
        self._known_count = len(token_ids)
        bits = torch.empty(-(-len(logits) // 32), dtype=torch.int32)
        # The executor waits: it wants every token of a step in that step, so that no sequence can
        # sit out, and it tells the tokens of the step before no sooner. What a slow guide costs the
        # others is bounded by what its request may use up.
        matcher.advance(new_token_ids, bits, may_end=may_end)
        matcher.charge()
        return unpacked(bits.to(logits.device), len(logits))


class LogitsProcessor:
    """Applies the constraints of all requests that have one.

    The calls' thread adds and removes them, the executor's thread looks them up.
    """

    def __init__(self, vocabulary_size: int) -> None:
        self._vocabulary_size = vocabulary_size
        self._constraints: dict[int, Constraint] = {}

    def add(self, client_id: int, constraint: Constraint) -> None:
        """Takes a request's constraint, before the request is enqueued."""
        self._constraints[client_id] = constraint

    def remove(self, client_id: int) -> None:
        """Forgets a request's constraint, if there is one."""
        self._constraints.pop(client_id, None)

    def __call__(
        self,
        request_ids: Sequence[int],
        logits: Sequence[torch.Tensor],
        token_ids: Sequence[Sequence[Sequence[int]]],
        stream_handle: int,
        client_ids: Sequence[int | None],
    ) -> None:
        """Changes a step's logits, as LogitsPostProcessorConfig.processor_batched has it.

        Args:
            request_ids: the executor's own.
            logits: of each request [1, 1, padded vocabulary size], contiguous; changed.
            token_ids: of each request and its one beam, prompt and output so far.
            stream_handle: the cudaStream_t that the logits belong to.
            client_ids: the engine's numbers of the requests.
        """
        with _on_stream(stream_handle, logits[0].device):
            for values, (tokens,), client_id in zip(logits, token_ids, client_ids, strict=True):
                # A request that was cancelled may take part in one more step.
                if client_id is not None and (found := self._constraints.get(client_id)):
                    found.apply(values.view(-1)[: self._vocabulary_size], tokens)


def _on_stream(handle: int, device: torch.device) -> AbstractContextManager[object]:
    if device.type != "cuda":
        return nullcontext()
    stream = torch.cuda.ExternalStream(handle, device)  # type: ignore[no-untyped-call] # torch's
    return torch.cuda.stream(stream)
