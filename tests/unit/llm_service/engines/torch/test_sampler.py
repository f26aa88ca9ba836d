"""The batched sampler against the same rules written out for one sequence in plain Python."""

from __future__ import annotations

import math
from collections import Counter
from random import Random

import pytest
import torch

from llm_service.engines.base import Prompt
from llm_service.engines.torch.ranked import Ranked
from llm_service.engines.torch.sampler import guide_masks, sample
from llm_service.engines.torch.sequence import Sequence
from llm_service.engines.torch.token_histories import TokenHistories
from llm_service.sampling import SamplingParams

VOCABULARY_SIZE = 23
# 25 and 24 are virtual tokens: they have no logit, so no penalty may look for one.
PROMPT = [3, 25, 24, 3, 7]
OUTPUT = [5, 7, 5, 5, 11]

KNOBS = [
    SamplingParams(),
    SamplingParams(repetition_penalty=1.7),
    SamplingParams(repetition_penalty=0.6),
    SamplingParams(presence_penalty=1.1),
    SamplingParams(frequency_penalty=0.9),
    SamplingParams(frequency_penalty=-0.9, presence_penalty=0.5, repetition_penalty=1.2),
    SamplingParams(min_tokens=6, stop_token_ids=frozenset(range(12))),
    SamplingParams(min_tokens=5, stop_token_ids=frozenset(range(12))),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.3),
    SamplingParams(temperature=2.0),
    SamplingParams(temperature=1.0, top_k=3),
    SamplingParams(temperature=1.0, top_k=1),
    SamplingParams(temperature=1.0, top_k=1000),
    SamplingParams(temperature=1.0, top_p=0.6),
    SamplingParams(temperature=1.0, top_p=1e-6),
    SamplingParams(temperature=1.0, min_p=0.3),
    SamplingParams(temperature=1.0, min_p=1.0),
    SamplingParams(
        temperature=1.5, top_k=9, top_p=0.8, min_p=0.1, repetition_penalty=1.3, presence_penalty=1.0
    ),
    SamplingParams(temperature=1.0, min_tokens=6, stop_token_ids=frozenset(range(20))),
]


def _with_seed(params: SamplingParams, seed: int) -> SamplingParams:
    return SamplingParams(**{**vars(params), "seed": seed})


def _sequence(params: SamplingParams) -> Sequence:
    sequence = Sequence(Prompt(PROMPT, torch.empty(2, 1)), params, 100, VOCABULARY_SIZE)
    for token_id in OUTPUT:
        sequence.length += 1
        sequence.append(token_id)
    return sequence


def _sampled(logits: list[torch.Tensor], sequences: list[Sequence]) -> list[int]:
    for slot, sequence in enumerate(sequences):
        sequence.slot = slot
    ranked = Ranked.of(torch.stack(logits))
    histories = TokenHistories(ranked.logits.shape[1], ranked.logits.device)
    token_ids: list[int] = sample(ranked, sequences, None, histories).token_ids.tolist()
    return token_ids


def _logits(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(VOCABULARY_SIZE, generator=generator) * 2


def _expected(logits: torch.Tensor, params: SamplingParams, seed: int) -> int:
    """Returns the token by the rules, one after the other."""
    scores = _penalised(logits.tolist(), params)
    ranked = sorted(range(VOCABULARY_SIZE), key=lambda token_id: -scores[token_id])
    if params.temperature == 0:
        return ranked[0]
    ranked = ranked[: params.top_k]
    shares = [math.exp((scores[i] - scores[ranked[0]]) / params.temperature) for i in ranked]
    shares = [share / sum(shares) for share in shares]
    kept = []
    for position, (token_id, share) in enumerate(zip(ranked, shares, strict=True)):
        if sum(shares[:position]) < params.top_p and share >= params.min_p * shares[0]:
            kept.append((token_id, share))
    if not (params.top_k or params.top_p < 1 or params.min_p):
        kept.sort()  # nothing is filtered, so nothing is ranked
    point = Random(seed).random() * sum(share for _, share in kept)
    for token_id, share in kept:
        point -= share
        if point < 0:
            return token_id
    return kept[-1][0]


def _penalised(scores: list[float], params: SamplingParams) -> list[float]:
    for token_id in {3, 7, 5, 11}:
        penalty = params.repetition_penalty
        scores[token_id] *= penalty if scores[token_id] < 0 else 1 / penalty
    for token_id, times in Counter(OUTPUT).items():
        scores[token_id] -= params.presence_penalty + times * params.frequency_penalty
    if len(OUTPUT) < params.min_tokens:
        for token_id in params.stop_token_ids:
            scores[token_id] = -math.inf
    return scores


@pytest.mark.parametrize("seed", range(30))
def test_every_knob_in_one_batch_equals_the_rules(seed: int) -> None:
    all_params = [_with_seed(params, 100 * seed + i) for i, params in enumerate(KNOBS)]
    logits = [_logits(1000 * seed + i) for i in range(len(KNOBS))]
    chosen = _sampled(logits, [_sequence(params) for params in all_params])
    expected = [
        _expected(row, params, 100 * seed + i)
        for i, (row, params) in enumerate(zip(logits, all_params, strict=True))
    ]
    assert chosen == expected


def _is_narrow(params: SamplingParams) -> bool:
    return params.top_k == 1 or params.top_p < 1e-3 or params.min_p == 1


@pytest.mark.parametrize(
    "params",
    [params for params in KNOBS[1:] if params.min_tokens != len(OUTPUT)],
    ids=str,
)
def test_every_knob_changes_the_rules_choice(params: SamplingParams) -> None:
    """Guards the test above, which a knob that matters to neither side would pass."""
    logits = [_logits(seed) for seed in range(200)]
    plain = [_expected(row, SamplingParams(), seed) for seed, row in enumerate(logits)]
    turned = [_expected(row, params, seed) for seed, row in enumerate(logits)]
    assert (turned == plain) is _is_narrow(params)


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    params = SamplingParams(temperature=1.0, seed=5)
    sequence = Sequence(Prompt([0], torch.empty(0, 1)), params, 5000, len(logits))
    counts = Counter(_sampled([logits], [sequence])[0] for _ in range(4000))
    for token_id, probability in enumerate(logits.softmax(0).tolist()):
        deviation = math.sqrt(probability * (1 - probability) / 4000)
        assert counts[token_id] / 4000 == pytest.approx(probability, abs=4 * deviation)


def test_unseeded_sequences_differ() -> None:
    flat = torch.zeros(100_000)
    params = SamplingParams(temperature=1.0)
    first, second = _sampled([flat, flat], [_sequence(params), _sequence(params)])
    assert first != second


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("params", KNOBS, ids=str)
def test_numbers_gone_wrong_give_a_token_and_leave_the_others_alone(
    value: float, params: SamplingParams
) -> None:
    good, seeded = _logits(1), SamplingParams(temperature=1.0, seed=2)
    bad = torch.full((VOCABULARY_SIZE,), value)
    chosen = _sampled([bad, good], [_sequence(params), _sequence(seeded)])
    assert 0 <= chosen[0] < VOCABULARY_SIZE
    assert chosen[1] == _expected(good, seeded, 2)


def test_smallest_temperature_is_greedy() -> None:
    logits = _logits(3)
    params = SamplingParams(temperature=1e-45, seed=1)
    assert _sampled([logits], [_sequence(params)]) == [int(logits.argmax())]


PENALISED = SamplingParams(frequency_penalty=1.3, repetition_penalty=1.2)


def test_a_slot_forgets_the_sequence_that_had_it_before() -> None:
    histories = TokenHistories(VOCABULARY_SIZE, torch.device("cpu"))
    for seed in range(6):
        logits, sequence = _logits(seed), _sequence(PENALISED)
        sequence.slot = 1
        choice = sample(Ranked.of(logits[None].clone()), [sequence], None, histories)
        assert choice.token_ids.tolist() == [_expected(logits, PENALISED, 0)]


def test_penalties_count_the_tokens_in_flight_and_those_of_a_new_start() -> None:
    histories = TokenHistories(VOCABULARY_SIZE, torch.device("cpu"))
    logits, sequence = _logits(4), _sequence(PENALISED)
    chosen: list[int] = []
    sequence.slot = 0
    for step in range(8):
        choice = sample(Ranked.of(logits[None].clone()), [sequence], None, histories)
        sequence.length += 1
        if step > 4:  # the host has not had it before the next one is sampled
            sequence.append(chosen[-1])
        chosen += choice.token_ids.tolist()
        if step <= 3:
            sequence.append(chosen[-1])
        if step == 3:
            sequence.start_over()
    other = _sequence(PENALISED)
    for token_id in chosen:
        alone = TokenHistories(VOCABULARY_SIZE, torch.device("cpu"))
        other.slot, other.history = 0, None
        choice = sample(Ranked.of(logits[None].clone()), [other], None, alone)
        assert choice.token_ids.tolist() == [token_id]
        other.length += 1
        other.append(token_id)
    assert len(set(chosen)) > 3


def test_no_masks_where_every_sequence_is_held_back() -> None:
    assert guide_masks([], 61).shape == (0, 2)
