"""Log probabilities of prompts: those of a plain forward pass, however the steps are cut."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import structs

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import LLMEngine, Prompt, Request, TokenLogprob, TokenOutput
from llm_service.engines.create import create_engine
from llm_service.engines.torch import prompt_scores, step_graphs, weights
from llm_service.engines.torch.block_manager import BlockManager
from llm_service.engines.torch.decoder import Decoder
from llm_service.engines.torch.model_runner import ModelRunner
from llm_service.engines.torch.sampler import ranked_logprobs
from llm_service.engines.torch.scheduler import Scheduler
from llm_service.engines.torch.sequence import Sequence
from llm_service.engines.torch.weights import load_decoder
from llm_service.sampling import Guide, SamplingParams
from llm_service.settings import Settings, TorchOptions
from protos.errors import NonFiniteError
from tests.unit.llm_service.engines.torch.answers import ENDS, NO_ROWS, outputs_of, tokens_of
from tests.unit.llm_service.engines.torch.gate import PATIENCE_SECONDS, Gate
from tests.unit.llm_service.engines.torch.reference import reference_model
from tests.unit.llm_service.engines.torch.replays import TiledKernels, replayed
from tests.unit.llm_service.engines.torch.tiny import (
    EVERY_FAMILY,
    QWEN2,
    Config,
    random_tensors,
    tiny_tokenizer,
    write_checkpoint,
)

BLOCK_SIZE = 4
TABLE = torch.randn(5, 32, generator=torch.Generator().manual_seed(7))
PLAIN = SamplingParams(max_tokens=6)
SCORED = SamplingParams(max_tokens=6, logprob_count=3, wants_prompt_logprobs=True)
LONG_IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 35, 8, 9, 7, 9, 3, 2, 3, 8, 4]
# Two prompts that are scored among two that are not, one of them with virtual tokens.
PROMPTS = (
    (LONG_IDS, SCORED),
    ([11, 61, 62, 63, 64, 65, 12, 13], PLAIN),
    ([27, 18], replace(SCORED, logprob_count=1)),
    ([6, 6, 7, 8, 2, 1], PLAIN),
)
Tables = dict[Sequence, list[TokenLogprob]]


def runner_of(
    folder: Path, llm: Config = QWEN2, block_count: int = 64, device: str = "cpu"
) -> ModelRunner:
    write_checkpoint(folder, llm, random_tensors(llm))
    config = LLMConfig.from_checkpoint(folder)
    decoder = load_decoder(folder, config, torch.device(device), torch.float32)
    return ModelRunner(decoder, block_count, BLOCK_SIZE, max_running=4)


def sequence_of(
    token_ids: list[int], params: SamplingParams, number: int = 0, max_tokens: int = 6
) -> Sequence:
    prompt = Prompt(token_ids, TABLE)
    return Sequence(prompt, params, max_tokens, vocabulary_size=61, order=(0, number))


def scores_of(runner: ModelRunner, scheduler: Scheduler, sequences: list[Sequence]) -> Tables:
    """Runs sequences to their ends, step by step as the engine does; returns what was scored."""
    scores: Tables = defaultdict(list)
    for sequence in sequences:
        scheduler.add(sequence)
    while scheduler.has_work:
        scheduled = scheduler.schedule()
        outputs = runner.run(scheduled)
        for sequence in scheduled:
            sequence.mark_launched()
        sampled = outputs.read()
        for prompt in outputs.read_scores():
            assert prompt.is_finite
            for part in prompt.table.parts(5):
                scores[prompt.sequence] += part
        for token in sampled:
            token.sequence.append(token.token_id)
            if token.sequence.has_ended:
                scheduler.finish(token.sequence)
    return scores


def check_scores(llm: Config, token_ids: list[int], scores: list[TokenLogprob], count: int) -> None:
    """Compares with one forward pass over the whole prompt, without a cache."""
    with torch.inference_mode():
        (logits,) = reference_model(llm, random_tensors(llm))(torch.tensor([token_ids])).logits
    logprobs = logits.log_softmax(-1)
    assert [score.token_id for score in scores] == token_ids[1:]
    for row, score in zip(logprobs, scores, strict=False):
        best, top = row.topk(count)
        assert score.logprob == pytest.approx(row[score.token_id].item(), abs=2e-4)
        assert [token_id for token_id, _ in score.top] == top.tolist()
        assert [logprob for _, logprob in score.top] == pytest.approx(best.tolist(), abs=2e-4)
        assert (score.logprob == score.top[0][1]) == (score.token_id == row.argmax())


def check_prompts(runner: ModelRunner, llm: Config, max_step_token_count: int) -> None:
    """Scores PROMPTS together; nobody's tokens change by it."""
    results = []
    for asked in (PROMPTS, [(ids, PLAIN) for ids, _ in PROMPTS]):
        sequences = [sequence_of(ids, params, number) for number, (ids, params) in enumerate(asked)]
        scheduler = Scheduler(BlockManager(64, BLOCK_SIZE), max_step_token_count, 4)
        scores = scores_of(runner, scheduler, sequences)
        results.append([sequence.token_ids for sequence in sequences])
        if asked is PROMPTS:
            assert set(scores) == {sequences[0], sequences[2]}
            for sequence in scores:
                ids = sequence.prompt.token_ids
                check_scores(llm, ids, scores[sequence], sequence.params.logprob_count or 0)
        else:
            assert not scores
    assert results[0] == results[1]


@EVERY_FAMILY
@pytest.mark.parametrize("max_step_token_count", [100, 7, 1])
def test_scores_are_those_of_one_forward_pass(
    tmp_path: Path, llm: Config, max_step_token_count: int
) -> None:
    check_prompts(runner_of(tmp_path, llm), llm, max_step_token_count)


@pytest.mark.parametrize(
    ("max_step_token_count", "large_step_token_count"),
    [
        (20, 21),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in [(100, 21), (7, 21), (100, 1000), (20, 1000), (7, 1000)]
        ),
    ],
)
def test_scores_beside_step_graphs_are_so_too(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    max_step_token_count: int,
    large_step_token_count: int,
) -> None:
    replays = replayed(monkeypatch)
    monkeypatch.setattr(step_graphs, "TOKEN_SIZES", (4, 21))
    monkeypatch.setattr(step_graphs, "FURTHER_TOKEN_SIZE", 20)
    monkeypatch.setattr(step_graphs, "LARGE_STEP_TOKEN_COUNT", large_step_token_count)
    monkeypatch.setattr(weights, "kernels_for", lambda *_: TiledKernels())
    check_prompts(runner_of(tmp_path), QWEN2, max_step_token_count)
    assert any(replay.count for replay in replays)


@pytest.mark.gpu
@EVERY_FAMILY
@pytest.mark.parametrize("max_step_token_count", [100, 20, 7])
def test_scores_on_cuda_are_so_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llm: Config, max_step_token_count: int
) -> None:
    monkeypatch.setattr(step_graphs, "TOKEN_SIZES", (4, 21))
    check_prompts(runner_of(tmp_path, llm, device="cuda"), llm, max_step_token_count)


def test_logits_of_a_long_prompt_never_stand_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = runner_of(tmp_path, block_count=128)
    counts: list[int] = []
    logits = Decoder.logits

    def counted(decoder: Decoder, states: torch.Tensor) -> torch.Tensor:
        counts.append(len(states))
        return logits(decoder, states)

    monkeypatch.setattr(Decoder, "logits", counted)
    sequence = sequence_of([place * 7 % 61 for place in range(400)], SCORED)
    scheduler = Scheduler(BlockManager(128, BLOCK_SIZE), 512, 4)
    scores = scores_of(runner, scheduler, [sequence])[sequence]
    assert counts[:8] == [1, *[64] * 6, 399 - 6 * 64]
    assert max(counts) == prompt_scores.ROWS_AT_A_TIME == 64
    monkeypatch.setattr(prompt_scores, "ROWS_AT_A_TIME", 1000)
    again = sequence_of(sequence.prompt.token_ids, SCORED)
    (at_once,) = scores_of(runner, scheduler, [again]).values()
    for one, other in zip(scores, at_once, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
    assert max(counts) == 399


def test_a_prompt_that_is_read_again_is_scored_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its blocks go to an older sequence while it is read, one of its tokens a step."""
    preempted: list[int] = []
    preempt = Scheduler._preempt

    def noted(scheduler: Scheduler, sequence: Sequence) -> None:
        preempted.append(sequence.unscored_count)
        preempt(scheduler, sequence)

    monkeypatch.setattr(Scheduler, "_preempt", noted)
    older = sequence_of([6, 6, 7, 8], PLAIN, max_tokens=25)
    scored = sequence_of(LONG_IDS, SCORED, number=1)
    scheduler = Scheduler(BlockManager(8, BLOCK_SIZE), 2, 4)
    scores = scores_of(runner_of(tmp_path, block_count=8), scheduler, [older, scored])
    assert 0 < preempted[0] < len(LONG_IDS) - 1
    check_scores(QWEN2, LONG_IDS, scores[scored], 3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), QWEN2, random_tensors(QWEN2))


@asynccontextmanager
async def serving(checkpoint: Path, max_step_token_count: int = 5) -> AsyncIterator[LLMEngine]:
    """Yields an engine that reads a prompt in several steps."""
    options = TorchOptions(
        device="cpu",
        dtype="float32",
        thread_count=1,
        block_size=BLOCK_SIZE,
        max_step_token_count=max_step_token_count,
    )
    settings = Settings(checkpoint=checkpoint, torch=options, kv_cache_byte_count=2**20)
    config = LLMConfig.from_checkpoint(checkpoint)
    engine = await asyncio.to_thread(create_engine, settings, config, tiny_tokenizer())
    try:
        yield engine
    finally:
        await engine.close()


def told(outputs: list[TokenOutput]) -> list[TokenLogprob]:
    """Returns the prompt's scores, which come before any token."""
    tables = [output.prompt_logprobs for output in outputs]
    count = sum(table is not None for table in tables)
    assert all(tables[:count])
    assert [bool(output.token_ids) for output in outputs] == [False] * count + [True] * (
        len(outputs) - count
    )
    return [score for table in tables if table for part in table.parts(100) for score in part]


@pytest.mark.parametrize("overlaps", [False, True], ids=["in turn", "overlapping"])
async def test_a_prompts_scores_are_those_that_its_tokens_had_as_output(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, overlaps: bool
) -> None:
    monkeypatch.setattr(ModelRunner, "overlaps", overlaps)
    params = SamplingParams(max_tokens=30, logprob_count=3)
    async with serving(checkpoint) as engine:
        written = await outputs_of(engine, Prompt(LONG_IDS, NO_ROWS), params)
        token_ids = [*LONG_IDS, *(output.token_ids[0] for output in written)]
        outputs = await outputs_of(engine, Prompt(token_ids, NO_ROWS), SCORED)
    scores = told(outputs)
    check_scores(QWEN2, token_ids, scores, 3)
    for output, score in zip(written, scores[len(LONG_IDS) - 1 :], strict=True):
        (expected,) = output.logprobs
        assert score.token_id == score.top[0][0] == expected.token_id
        assert score.logprob == score.top[0][1] == pytest.approx(expected.logprob, abs=1e-5)


async def test_what_the_cache_holds_of_a_prompt_is_computed_anew(checkpoint: Path) -> None:
    prompt = Prompt(LONG_IDS, NO_ROWS)
    async with serving(checkpoint) as engine:
        cold = await outputs_of(engine, prompt, SCORED)
        warm = await outputs_of(engine, prompt, PLAIN)
        again = await outputs_of(engine, prompt, SCORED)
        after = await outputs_of(engine, prompt, PLAIN)
    assert [outputs[-1].cached_token_count for outputs in (cold, warm, again, after)] == [
        0,
        16,
        0,
        16,
    ]
    assert told(again) == told(cold)
    assert len(told(cold)) == len(LONG_IDS) - 1


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.5, "seed": 3},
        {"repetition_penalty": 1.5, "presence_penalty": 1.0, "frequency_penalty": 1.0},
        {"logit_bias": ((5, 50.0), (9, -50.0))},
        {"guide": Guide("regex", "[a-e]+"), "stop_token_ids": ENDS, "min_tokens": 6},
    ],
    ids=["sampled", "penalised", "biased", "guided"],
)
async def test_scores_are_the_models_own_and_tokens_stay_as_asked(
    checkpoint: Path, options: dict[str, Any]
) -> None:
    prompt = Prompt(LONG_IDS, NO_ROWS)
    async with serving(checkpoint) as engine:
        expected = told(await outputs_of(engine, prompt, SCORED))
        tokens = await tokens_of(engine, replace(PLAIN, **options), prompt)
        outputs = await outputs_of(engine, prompt, replace(SCORED, **options))
    assert told(outputs) == expected
    assert [token_id for output in outputs for token_id in output.token_ids] == tokens


@pytest.mark.parametrize("token_ids", [[7], [7, 8]])
async def test_the_shortest_prompts(checkpoint: Path, token_ids: list[int]) -> None:
    async with serving(checkpoint) as engine:
        outputs = await outputs_of(engine, Prompt(token_ids, NO_ROWS), SCORED)
    check_scores(QWEN2, token_ids, told(outputs), 3)


async def test_alternatives_are_not_needed(checkpoint: Path) -> None:
    prompt = Prompt(LONG_IDS, NO_ROWS)
    async with serving(checkpoint) as engine:
        expected = told(await outputs_of(engine, prompt, SCORED))
        bare = told(await outputs_of(engine, prompt, replace(SCORED, logprob_count=0)))
    assert bare == [structs.replace(score, top=()) for score in expected]


async def test_a_request_that_goes_while_its_prompt_is_scored_leaves_nothing(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(checkpoint) as engine:
        gate = Gate(monkeypatch)
        gate.close()
        gate.permit(1)
        async with aclosing(engine.generate(Request(Prompt(LONG_IDS, NO_ROWS), SCORED))) as outputs:
            first = await anext(outputs)
        assert first.prompt_logprobs is not None
        assert len(first.prompt_logprobs.token_ids) == 5 < len(LONG_IDS)
        gate.open()
        assert len(await tokens_of(engine, PLAIN)) == 6
        load = engine.load()
    assert load.free_kv_token_count == load.total_kv_token_count


async def test_scores_that_are_no_numbers_end_their_request_alone(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the logits of one place alone overflow, what is sampled later is finite."""

    def broken(
        token_ids: torch.Tensor, logits: torch.Tensor, count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits[token_ids == 35] = torch.inf
        return ranked_logprobs(token_ids, logits, count)

    monkeypatch.setattr("llm_service.engines.torch.prompt_scores.ranked_logprobs", broken)
    good = Prompt([5, 6, 7, 8, 9, 10, 11], NO_ROWS)
    async with serving(checkpoint) as engine:
        gate = Gate(monkeypatch)
        gate.close()
        expected = asyncio.ensure_future(outputs_of(engine, good, SCORED))
        await asyncio.to_thread(gate.entered.wait, PATIENCE_SECONDS)
        bad = asyncio.ensure_future(outputs_of(engine, Prompt(LONG_IDS, NO_ROWS), SCORED))
        await asyncio.sleep(0)
        gate.open()
        with pytest.raises(NonFiniteError, match="numbers are not finite in float32"):
            await bad
        check_scores(QWEN2, good.token_ids, told(await expected), 3)
        assert len(await tokens_of(engine, PLAIN, Prompt(LONG_IDS, NO_ROWS))) == 6
        load = engine.load()
    assert load.free_kv_token_count == load.total_kv_token_count
