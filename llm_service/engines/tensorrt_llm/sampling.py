"""A request's options as the executor takes them."""

from __future__ import annotations

import random

from tensorrt_llm.bindings import executor

from llm_service.engines.tensorrt_llm.logits import constraining_option
from llm_service.sampling import SamplingParams
from protos.errors import UnsupportedFieldError

# The smallest normal float32: what is less may become 0 in the executor, which refuses it.
SMALLEST = 2.0**-126


def check_supported(params: SamplingParams, *, processes_logits: bool) -> None:
    """Refuses options that the executor has no equal of.

    Args:
        params: of the request.
        processes_logits: whether the executor lets us at its logits.

    Raises:
        UnsupportedFieldError: naming the field.
    """
    if params.wants_prompt_logprobs:
        name = "a log probability of the prompt's tokens"
        raise _unsupported("logprobs.prompt", name, "gives those of the output alone")
    if params.logprob_count:
        name = "a log probability of alternatives"
        raise _unsupported("logprobs.top_count", name, "gives the chosen token's alone")
    if not processes_logits and (option := constraining_option(params)):
        raise _unsupported(*option, "needs mpi_mode leader and no pipeline parallelism for it")


def sampling_config(params: SamplingParams) -> executor.SamplingConfig:
    """Returns how tokens are chosen.

    The executor's defaults are greedy (top_k and top_p 0) and seed 0 for all, so that a request
    that samples says all three.
    """
    penalties = {
        name: value if value != neutral else None
        for name, value, neutral in (
            ("repetition_penalty", max(params.repetition_penalty, SMALLEST), 1),
            ("presence_penalty", params.presence_penalty, 0),
            ("frequency_penalty", params.frequency_penalty, 0),
        )
    }
    if params.is_greedy:
        return executor.SamplingConfig(top_k=1, **penalties)
    return executor.SamplingConfig(
        top_k=params.top_k or 0,
        top_p=max(params.top_p, SMALLEST),
        min_p=params.min_p or None,
        temperature=params.temperature,
        seed=random.getrandbits(64) if params.unsigned_seed is None else params.unsigned_seed,
        **penalties,
    )


def _unsupported(field: str, name: str, reason: str) -> UnsupportedFieldError:
    return UnsupportedFieldError(
        f"{name} is not supported: the tensorrt_llm engine {reason}", field=field
    )
