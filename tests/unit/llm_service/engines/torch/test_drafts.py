"""Drafts change nothing but the number of steps: the tokens are those of an engine without any."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import DraftTotals, LLMEngine, Prompt, TokenOutput
from llm_service.engines.create import create_engine
from llm_service.engines.torch import model_runner, weights
from llm_service.engines.torch.drafts import Drafter, TokenLookup
from llm_service.engines.torch.model_runner import ModelRunner
from llm_service.engines.torch.sequence import Sequence
from llm_service.engines.torch.step_inputs import StepInputs
from llm_service.engines.torch.step_outputs import StepOutputs
from llm_service.sampling import Guide, SamplingParams
from llm_service.settings import Settings, TorchOptions
from tests.unit.llm_service.engines.torch.answers import ENDS, NO_ROWS, outputs_of
from tests.unit.llm_service.engines.torch.replays import Replay, TiledKernels, replayed
from tests.unit.llm_service.engines.torch.tiny import (
    QWEN2,
    random_tensors,
    tiny_tokenizer,
    write_checkpoint,
)

DRAFT_COUNT = 5
BLOCK_SIZE = 4
LOGPROB_TOLERANCE = 1e-4
# Of the tiny tokenizer, letters alone.
LETTERS = Guide("regex", "([a-e]{2,5}){20,40}z")


class Pair(NamedTuple):
    """Two engines on the same checkpoint: without drafts, and with them."""

    plain: LLMEngine
    drafting: LLMEngine


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), QWEN2, random_tensors(QWEN2))


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose next token follows from the last one alone: its output is soon a circle."""
    tensors = random_tensors(QWEN2)
    for name, tensor in tensors.items():
        if "o_proj" in name or "down_proj" in name:
            tensor.zero_()
    return write_checkpoint(tmp_path_factory.mktemp("chain"), QWEN2, tensors)


class Starter:
    """Starts engines; closes them after the test."""

    def __init__(self) -> None:
        self.engines: list[LLMEngine] = []

    async def engine(self, checkpoint: Path, draft_count: int, **options: int) -> LLMEngine:
        torch_options = TorchOptions(
            device="cpu",
            dtype="float32",
            thread_count=1,
            block_size=BLOCK_SIZE,
            max_step_token_count=options.pop("max_step_token_count", None),
            draft_token_count=draft_count,
        )
        given = {"checkpoint": checkpoint, "torch": torch_options, "kv_cache_byte_count": 2**22}
        settings = await asyncio.to_thread(Settings.model_validate, given | options)
        config = await asyncio.to_thread(LLMConfig.from_checkpoint, checkpoint)
        engine = await asyncio.to_thread(create_engine, settings, config, tiny_tokenizer())
        self.engines.append(engine)
        return engine

    async def pair(self, checkpoint: Path, **options: int) -> Pair:
        plain = await self.engine(checkpoint, 0, **options)
        return Pair(plain, await self.engine(checkpoint, DRAFT_COUNT, **options))


@pytest.fixture(params=["in turn", "overlapping", "graphs"])
def runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Replay]:
    """How steps run: as on a CPU; with a token in flight, as on CUDA; by its graphs besides."""
    monkeypatch.setattr(ModelRunner, "overlaps", request.param != "in turn")
    if request.param != "graphs":
        return []
    monkeypatch.setattr(weights, "kernels_for", lambda *_: TiledKernels())
    return replayed(monkeypatch)


@pytest.fixture
async def starter() -> AsyncGenerator[Starter, None]:
    starter = Starter()
    yield starter
    for engine in starter.engines:
        await engine.close()


async def test_a_chain_is_written_in_few_steps(starter: Starter, chain: Path) -> None:
    plain, drafting = await starter.pair(chain)
    params = SamplingParams(max_tokens=200)
    prompt = Prompt([3, 1, 4], NO_ROWS)
    expected = await outputs_of(plain, prompt, params)
    before = drafting.load().steps.step_count
    outputs = await outputs_of(drafting, prompt, params)
    assert _token_ids(outputs) == _token_ids(expected)
    assert len(_token_ids(expected)) == 200
    step_count = drafting.load().steps.step_count - before
    assert step_count < 80
    drafts = _drafts(drafting)
    # A step is counted after its tokens are out.
    assert drafts.accepted_token_count >= 200 - (step_count + 1)
    assert drafts.accepted_token_count > 0.8 * drafts.drafted_token_count


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (0, 2, 3))]
)
async def test_same_tokens_and_log_probabilities(
    runs: list[Replay], starter: Starter, checkpoint: Path, seed: int
) -> None:
    """Batches of all kinds of requests, prompts that repeat themselves, in random order."""
    chance = random.Random(seed)
    pair = await starter.pair(
        checkpoint,
        max_running_sequence_count=chance.choice([4, 16]),
        max_step_token_count=[6, 512][seed % 2],
    )
    requests = [(_prompt(chance), _params(chance)) for _ in range(10)]
    await _compare(pair, requests)
    assert _drafts(pair.drafting).accepted_token_count > 0
    assert not runs or any(replay.count for replay in runs)


@pytest.mark.slow
@pytest.mark.usefixtures("runs")
async def test_same_tokens_where_sequences_are_preempted(
    starter: Starter, checkpoint: Path
) -> None:
    """Of the cache's 20 blocks, six sequences want 16 each; drafts are given up before that."""
    chance = random.Random(7)
    pair = await starter.pair(
        checkpoint, kv_cache_byte_count=20 * BLOCK_SIZE * 2 * 2 * 2 * 8 * 4, max_step_token_count=16
    )
    requests = [(_prompt(chance, 12), _params(chance, 50)) for _ in range(6)]
    await _compare(pair, requests)
    assert pair.drafting.load().preemption_count
    assert _drafts(pair.drafting).accepted_token_count > 0
    load = pair.drafting.load()
    assert load.free_kv_token_count == load.total_kv_token_count


async def test_keys_of_wrong_drafts_are_never_read(
    starter: Starter, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind its tokens each sequence's cache is filled with large numbers after each step."""
    pair = await starter.pair(checkpoint)
    run, poisoned_count = ModelRunner.run, 0

    def poisoning(runner: ModelRunner, scheduled: list[Sequence]) -> StepOutputs:
        nonlocal poisoned_count
        for sequence in scheduled:
            for place in range(sequence.computed_count, BLOCK_SIZE * len(sequence.block_table)):
                block, offset = divmod(place, BLOCK_SIZE)
                runner.kv_cache[:, :, sequence.block_table[block], offset] = 1e4
                poisoned_count += 1
        return run(runner, scheduled)

    monkeypatch.setattr(ModelRunner, "run", poisoning)
    chance = random.Random(3)
    await _compare(pair, [(_prompt(chance), _params(chance)) for _ in range(6)])
    drafts = _drafts(pair.drafting)
    assert drafts.drafted_token_count > drafts.accepted_token_count > 0
    assert poisoned_count


async def test_a_prefix_with_wrong_drafts_is_shared_rightly(
    starter: Starter, checkpoint: Path
) -> None:
    """A second turn finds the first one's blocks, in which wrong drafts have been written over."""
    pair = await starter.pair(checkpoint)
    chance = random.Random(5)
    for _ in range(4):
        prompt, params = _prompt(chance), SamplingParams(max_tokens=40)
        answers = [_token_ids(await outputs_of(engine, prompt, params)) for engine in pair]
        assert answers[0] == answers[1]
        further = Prompt([*prompt.token_ids, *answers[0], 9, 8], NO_ROWS)
        turns = [await outputs_of(engine, further, params) for engine in pair]
        assert turns[1][0].cached_token_count == turns[0][0].cached_token_count > 40
        assert _token_ids(turns[0]) == _token_ids(turns[1])
    drafts = _drafts(pair.drafting)
    assert drafts.drafted_token_count > drafts.accepted_token_count


async def test_nothing_behind_the_end(starter: Starter, chain: Path) -> None:
    """A stop token or the limit in the middle of what a step has verified is the end."""
    pair = await starter.pair(chain)
    prompt = Prompt([3, 1, 4], NO_ROWS)
    circle = _token_ids(await outputs_of(pair.plain, prompt, SamplingParams(max_tokens=120)))
    for max_tokens in range(60, 72):
        params = SamplingParams(max_tokens=max_tokens, logprob_count=1)
        outputs = await outputs_of(pair.drafting, prompt, params)
        assert _token_ids(outputs) == circle[:max_tokens]
        assert outputs[-1].finish_reason == "length"
        assert [one.token_id for o in outputs for one in o.logprobs] == circle[:max_tokens]
    for min_tokens in range(60, 66):
        params = SamplingParams(
            max_tokens=120, min_tokens=min_tokens, stop_token_ids=frozenset({circle[100]})
        )
        expected = await outputs_of(pair.plain, prompt, params)
        outputs = await outputs_of(pair.drafting, prompt, params)
        assert _token_ids(outputs) == _token_ids(expected)
        assert outputs[-1].finish_reason == expected[-1].finish_reason == "stop"
    assert _drafts(pair.drafting).accepted_token_count


@pytest.mark.parametrize("first", [0, 1])
async def test_a_draft_without_numbers_is_no_fault_of_the_sequence(
    starter: Starter, chain: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """The logits after drafts are NaN once, as are their values, which PyTorch's kernels read.

    In the same step these make the logits before them NaN as well.
    """
    monkeypatch.setattr(model_runner, "compiled_decode", lambda *_: None)
    pair = await starter.pair(chain)
    prompt, params = Prompt([3, 1, 4], NO_ROWS), SamplingParams(max_tokens=100)
    expected = _token_ids(await outputs_of(pair.plain, prompt, params))
    logits, broken = ModelRunner.logits, 0

    def breaking(runner: ModelRunner, inputs: StepInputs) -> torch.Tensor:
        nonlocal broken
        rows = logits(runner, inputs)
        if inputs.is_decodes_alone and len(rows) > 1 and not broken:
            broken += 1
            rows[first:] = torch.nan
            for place in inputs.rows[2, 1:].tolist():
                runner.kv_cache[:, :, place // BLOCK_SIZE, place % BLOCK_SIZE] = torch.nan
        return rows

    monkeypatch.setattr(ModelRunner, "logits", breaking)
    assert _token_ids(await outputs_of(pair.drafting, prompt, params)) == expected
    assert broken == 1


async def test_penalties_have_no_drafts(starter: Starter, chain: Path) -> None:
    pair = await starter.pair(chain)
    params = SamplingParams(max_tokens=100, frequency_penalty=0.01)
    await _compare(pair, [(Prompt([3, 1, 4], NO_ROWS), params)])
    assert _drafts(pair.drafting) == DraftTotals()


async def test_an_engine_without_drafts_has_no_totals(starter: Starter, chain: Path) -> None:
    assert (await starter.engine(chain, 0)).load().drafts is None


def test_a_lookup_finds_the_latest_place() -> None:
    token_ids = [1, 2, 3, 4, 9, 1, 2, 3, 5, 6, 7, 1, 2, 3]
    lookup = TokenLookup(token_ids)
    assert lookup.continuation(0, 4) == [5, 6, 7, 1]
    assert lookup.continuation(1, 3) == [6, 7]
    token_ids.append(5)
    assert lookup.continuation(0, 3) == [6, 7, 1]
    token_ids.append(8)
    assert lookup.continuation(0, 3) == []


def test_a_lookup_goes_on_where_a_run_repeats() -> None:
    token_ids = [9, 4, 5, 4, 5, 4]
    assert TokenLookup(token_ids).continuation(0, 5) == [5, 4, 5, 4, 5]
    assert TokenLookup([7, 7, 7, 7]).continuation(2, 5) == [7, 7, 7]


@pytest.mark.parametrize("length", range(4))
def test_a_lookup_of_few_tokens_finds_nothing(length: int) -> None:
    assert TokenLookup([7] * length).continuation(0, 4) == ([7] * 4 if length == 4 else [])


def test_drafts_end_before_rows_of_images_and_stop_tokens() -> None:
    run = [1, 2, 3, 4, 60, 5, 1, 2, 3]
    assert Drafter(run, 61, {60}, 8).guess(0, 8) == [4]
    assert Drafter([1, 2, 3, 4, 61, 5, 1, 2, 3], 61, set(), 8).guess(0, 8) == [4]
    assert Drafter(run, 61, set(), 8).guess(0, 2) == [4, 60]


def test_drafts_that_fail_pause_and_return() -> None:
    """Few steps of an answer are lost for nothing: one in forty, and what was saved before."""
    drafter = Drafter([1, 2] * 50, 61, set(), 4)
    verified = 0
    for _ in range(400):
        if drafter.guess(0, 4):
            verified += 1
            drafter.learn(0)
    assert 10 <= verified <= 11


def _token_ids(outputs: list[TokenOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


def _drafts(engine: LLMEngine) -> DraftTotals:
    drafts = engine.load().drafts
    assert drafts is not None
    return drafts


def _prompt(chance: random.Random, length: int = 60) -> Prompt:
    """Returns a prompt of which some part stands in it several times."""
    run = [chance.randrange(50) for _ in range(chance.randrange(3, 12))]
    token_ids: list[int] = []
    while len(token_ids) < length:
        token_ids += [chance.randrange(50)] if chance.random() < 0.3 else run
    return Prompt(token_ids[:length], NO_ROWS)


def _params(chance: random.Random, max_tokens: int = 60) -> SamplingParams:
    params = SamplingParams(max_tokens=max_tokens, seed=chance.randrange(1000))
    return replace(params, **chance.choice(list(_kinds(chance))))


def _kinds(chance: random.Random) -> Iterator[dict[str, Any]]:
    yield {}
    yield {"logprob_count": chance.randrange(3)}
    yield {"temperature": chance.choice([0.1, 0.7]), "logprob_count": 2}
    yield {"temperature": 0.3, "top_p": 0.9, "top_k": 20}
    yield {"logit_bias": ((chance.randrange(50), 2.0),), "logprob_count": 1}
    yield {"min_tokens": 20, "stop_token_ids": ENDS | {chance.randrange(50)}}
    yield {"repetition_penalty": 1.1}
    yield {"guide": LETTERS, "stop_token_ids": ENDS, "logprob_count": 1}
    yield {"guide": LETTERS, "stop_token_ids": ENDS, "temperature": 0.5}


async def _compare(pair: Pair, requests: list[tuple[Prompt, SamplingParams]]) -> None:
    """Asks both engines for all of them at once."""
    plain, drafting = [
        await asyncio.gather(*(outputs_of(engine, *request) for request in requests))
        for engine in pair
    ]
    for expected, outputs, (_, params) in zip(plain, drafting, requests, strict=True):
        assert _token_ids(outputs) == _token_ids(expected), params
        assert outputs[-1].finish_reason == expected[-1].finish_reason
        logprobs = [[one for o in each for one in o.logprobs] for each in (expected, outputs)]
        for one, other in zip(*logprobs, strict=True):
            assert one.token_id == other.token_id
            assert one.logprob == pytest.approx(other.logprob, abs=LOGPROB_TOLERANCE)
            assert dict(one.top) == pytest.approx(dict(other.top), abs=LOGPROB_TOLERANCE)
