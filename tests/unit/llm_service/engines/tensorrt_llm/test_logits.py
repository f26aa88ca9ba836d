"""What a request's constraint makes of the logits that the executor shows."""

from __future__ import annotations

import asyncio

import pytest
import torch

from llm_service.engines.base import Account
from llm_service.engines.guides import GuideCompiler
from llm_service.engines.tensorrt_llm.logits import (
    Constraint,
    LogitsProcessor,
    constraining_option,
)
from llm_service.sampling import Guide, SamplingParams
from tests.real_tokenizers import real_tokenizer

VOCABULARY_SIZE, PADDED_SIZE = 151674, 151680
PROMPT = [5, 6, 7]
END = 151645


@pytest.fixture(scope="module")
def guides() -> GuideCompiler:
    return GuideCompiler(real_tokenizer("qwen2_5"), VOCABULARY_SIZE)


def processed(constraint: Constraint, *output: int, client_id: int | None = 4) -> torch.Tensor:
    """Returns the logits of the token after some output; all were 0."""
    processor = LogitsProcessor(VOCABULARY_SIZE)
    processor.add(4, constraint)
    logits = torch.zeros(1, 1, PADDED_SIZE)
    processor([9], [logits], [[[*PROMPT, *output]]], 0, [client_id])
    return logits[0, 0]


def guided(guides: GuideCompiler, params: SamplingParams) -> Constraint:
    assert params.guide is not None
    matcher = asyncio.run(guides.matcher(params.guide, params.stop_token_ids, Account()))
    return Constraint(params, len(PROMPT), matcher)


def test_a_bias_is_added() -> None:
    params = SamplingParams(logit_bias=((3, -1.0), (8, 2.5)))
    logits = processed(Constraint(params, len(PROMPT), None))
    assert {int(i): float(logits[i]) for i in logits.nonzero()[:, 0]} == {3: -1.0, 8: 2.5}


def test_stop_tokens_are_held_back_until_there_are_enough() -> None:
    params = SamplingParams(min_tokens=2, stop_token_ids=frozenset({END, 3}))
    constraint = Constraint(params, len(PROMPT), None)
    banned = processed(constraint, 8).isinf().nonzero()[:, 0].tolist()
    assert banned == [3, END]
    assert not processed(constraint, 8, 8).any()


def test_a_guide_goes_on_with_the_output(guides: GuideCompiler) -> None:
    tokenizer = real_tokenizer("qwen2_5")
    (yes,), (no,) = tokenizer.encode("yes"), tokenizer.encode("no")
    params = SamplingParams(guide=Guide("regex", "yes|no"), stop_token_ids=frozenset({END}))
    constraint = guided(guides, params)
    logits = processed(constraint)
    allowed = {*(~logits[:VOCABULARY_SIZE].isinf()).nonzero()[:, 0].tolist()}
    assert {yes, no} <= allowed
    assert END not in allowed
    assert not logits[VOCABULARY_SIZE:].any()  # padding is the executor's
    after = processed(constraint, yes)[:VOCABULARY_SIZE]
    assert (~after.isinf()).nonzero()[:, 0].tolist() == [END]
    assert constraint.failure is None


def test_what_leaves_the_language_fails_its_request(guides: GuideCompiler) -> None:
    guide = Guide("regex", "a+")
    params = SamplingParams(guide=guide, stop_token_ids=frozenset({END}))
    constraint = guided(guides, params)
    (b,) = real_tokenizer("qwen2_5").encode("b")
    logits = processed(constraint, b)[:VOCABULARY_SIZE]
    assert constraint.failure is not None
    assert constraint.failure.field == "guided.regex"
    assert (~logits.isinf()).nonzero()[:, 0].tolist() == [END]


def test_a_guide_that_takes_too_long_fails_its_request(
    guides: GuideCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_service.engines.guides.MAX_MASK_SECONDS", 1e-9)
    guide = Guide("regex", "a+")
    constraint = guided(guides, SamplingParams(guide=guide, stop_token_ids=frozenset({END})))
    processed(constraint)
    assert constraint.failure is not None
    assert "takes too long to follow: one token took" in constraint.failure.message
    (a,) = real_tokenizer("qwen2_5").encode("a")
    logits = processed(constraint, a)[:VOCABULARY_SIZE]
    assert (~logits.isinf()).nonzero()[:, 0].tolist() == [END]


@pytest.mark.parametrize("client_id", [5, None])
def test_requests_without_a_constraint_stay_as_they_are(client_id: int | None) -> None:
    params = SamplingParams(logit_bias=((3, -1.0),))
    assert not processed(Constraint(params, len(PROMPT), None), client_id=client_id).any()


@pytest.mark.parametrize(
    ("params", "field"),
    [
        (SamplingParams(), None),
        (SamplingParams(min_tokens=3), None),
        (SamplingParams(min_tokens=3, stop_token_ids=frozenset({1})), "stop.min_token_count"),
        (SamplingParams(logit_bias=((1, 1.0),)), "sampling.logit_bias"),
        (SamplingParams(guide=Guide("json_object")), "guided.json_object"),
    ],
)
def test_most_requests_need_none(params: SamplingParams, field: str | None) -> None:
    option = constraining_option(params)
    assert (None if option is None else option[0]) == field
