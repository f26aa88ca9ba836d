"""A request's options as the executor takes them."""

from __future__ import annotations

import random

from tensorrt_llm.bindings import executor

from llm_service.sampling import MAX_SEED, Guide, SamplingParams
from protos.errors import UnsupportedFieldError

GUIDE_TYPES = {
    "json_object": executor.GuidedDecodingParams.GuideType.JSON,
    "json_schema": executor.GuidedDecodingParams.GuideType.JSON_SCHEMA,
    "regex": executor.GuidedDecodingParams.GuideType.REGEX,
}


def check_supported(params: SamplingParams, end_token_ids: frozenset[int]) -> None:
    """Refuses options that the executor has no equal of.

    Args:
        params: of the request.
        end_token_ids: the tokens that end the output of a guide, the same for all requests.

    Raises:
        UnsupportedFieldError: naming the field.
    """
    if params.guide is not None:
        field = f"guided.{params.guide.kind}"
        if params.guide.kind not in GUIDE_TYPES:
            raise _unsupported(field, f"takes {', '.join(GUIDE_TYPES)}")
        if not end_token_ids <= params.stop_token_ids:
            raise _unsupported(field, "cannot end a guide without the model's end tokens")
    if params.min_tokens and params.stop_token_ids:
        raise _unsupported("stop.min_token_count", "cannot hold back stop tokens")
    if params.logprob_count:
        raise _unsupported("logprobs.top_count", "gives the chosen token's log probability alone")


def sampling_config(params: SamplingParams) -> executor.SamplingConfig:
    """Returns how tokens are chosen.

    The executor's defaults are greedy (top_k and top_p 0) and seed 0 for all, so that a request
    that samples says all three.
    """
    penalties = {
        name: value if value != neutral else None
        for name, value, neutral in (
            ("repetition_penalty", params.repetition_penalty, 1),
            ("presence_penalty", params.presence_penalty, 0),
            ("frequency_penalty", params.frequency_penalty, 0),
        )
    }
    if params.is_greedy:
        return executor.SamplingConfig(top_k=1, **penalties)
    return executor.SamplingConfig(
        top_k=params.top_k or 0,
        top_p=params.top_p,
        min_p=params.min_p or None,
        temperature=params.temperature,
        seed=random.randint(0, MAX_SEED) if params.seed is None else params.seed,
        **penalties,
    )


def guided_decoding_params(guide: Guide | None) -> executor.GuidedDecodingParams | None:
    """Returns what the output must be; None leaves it free."""
    if guide is None:
        return None
    return executor.GuidedDecodingParams(GUIDE_TYPES[guide.kind], guide.source or None)


def _unsupported(field: str, reason: str) -> UnsupportedFieldError:
    return UnsupportedFieldError(
        f"{field} is not supported: the tensorrt_llm engine {reason}", field=field
    )
