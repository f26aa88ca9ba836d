"""What becomes of numbers that are none: of a start, of a request, and of those beside it."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import EngineStartError, ImageRows, LLMEngine, Prompt, RowsNeededError
from llm_service.engines.create import create_engine
from llm_service.engines.torch.block_tables import BlockTables
from llm_service.engines.torch.model_runner import ModelRunner
from llm_service.engines.torch.sequence import Sequence
from llm_service.engines.torch.step_inputs import StepInputs
from llm_service.engines.torch.step_outputs import StepOutputs
from llm_service.sampling import Guide, SamplingParams
from llm_service.settings import Settings
from protos.errors import NonFiniteError, OverloadedError
from tests.embedding_ids import embedding_id
from tests.unit.llm_service.engines.torch.answers import (
    HIDDEN_SIZE,
    NO_ROWS,
    outputs_of,
    tokens_of,
)
from tests.unit.llm_service.engines.torch.gate import PATIENCE_SECONDS, Gate
from tests.unit.llm_service.engines.torch.tiny import (
    QWEN2,
    random_tensors,
    tiny_tokenizer,
    write_checkpoint,
)

Start = Callable[..., Awaitable[LLMEngine]]
Change = Callable[[torch.Tensor], torch.Tensor]
LAYER = "language_model.model.layers.1."
DOWN = f"{LAYER}mlp.down_proj.weight"
POISON = 2  # a token whose embedding is infinite; the first prompt of a start does not have it
EIGHT = SamplingParams(max_tokens=8)
HEAD = [3, 1, 4, 1, 5, 9, 7, 6]
GOOD, BAD = Prompt([*HEAD, 8, 8, 1], NO_ROWS), Prompt([*HEAD, POISON, 8, 1], NO_ROWS)
OTHER = Prompt([7, 7, 9], NO_ROWS)
KNOBS = {
    "greedy": EIGHT,
    "sampled": SamplingParams(max_tokens=8, temperature=1.0, seed=1),
    "filtered": SamplingParams(max_tokens=8, temperature=0.7, top_k=9, top_p=0.9, seed=3),
    "with log probabilities": SamplingParams(max_tokens=8, logprob_count=3),
    "with those of its prompt": SamplingParams(
        max_tokens=8, logprob_count=3, wants_prompt_logprobs=True
    ),
    "biased": SamplingParams(max_tokens=8, logit_bias=((5, 9.0), (POISON, -9.0))),
    "penalised": SamplingParams(
        max_tokens=8, frequency_penalty=0.5, repetition_penalty=1.2, logit_bias=((POISON, -99.0),)
    ),
    "of a least length": SamplingParams(max_tokens=8, min_tokens=4, stop_token_ids=frozenset({60})),
    "guided": SamplingParams(
        max_tokens=8, stop_token_ids=frozenset({60}), guide=Guide("regex", "[d-h]{8,20}")
    ),
}


def write(folder: Path, **changes: Change) -> Path:
    """Writes a tiny checkpoint with some of its language model's tensors changed."""
    tensors = random_tensors(QWEN2)
    changed = {name: change(tensors[name]) for name, change in changes.items()}
    return write_checkpoint(folder, QWEN2, tensors | changed)


def overflowing(weight: torch.Tensor) -> torch.Tensor:
    """Returns a weight that is finite in float16, though the sums over it are not."""
    return weight.sign() * 60_000


def started(
    checkpoint: Path, block_size: int = 4, dtype: str = "float32", **options: Any
) -> LLMEngine:
    given = {
        "checkpoint": checkpoint,
        "torch": {"device": "cpu", "dtype": dtype, "thread_count": 1, "block_size": block_size},
        "kv_cache_byte_count": 2**20,
    }
    settings = Settings.model_validate(given | options)
    return create_engine(settings, LLMConfig.from_checkpoint(checkpoint), tiny_tokenizer())


@pytest.mark.parametrize(
    ("name", "change", "dtype", "sentence"),
    [
        (
            DOWN,
            overflowing,
            "float16",
            "the logits of the language model are not finite in float16, which ends at 65504: "
            "serve it with --torch.dtype bfloat16 or float32",
        ),
        (
            DOWN,
            lambda weight: weight * 1e6,
            "float16",
            f"the checkpoint's {DOWN} is not finite in float16, which ends at 65504: "
            "serve it with --torch.dtype bfloat16 or float32",
        ),
        (
            f"{LAYER}self_attn.k_proj.weight",
            lambda weight: weight.index_fill(0, torch.tensor([3]), torch.nan),
            "float32",
            "the weights themselves are not finite: the checkpoint's "
            f"{LAYER}self_attn.k_proj.weight holds NaN",
        ),
    ],
)
def test_a_start_whose_logits_are_not_finite_is_refused(
    tmp_path: Path,
    name: str,
    change: Change,
    dtype: str,
    sentence: str,
) -> None:
    with pytest.raises(EngineStartError) as caught:
        started(write(tmp_path, **{name: change}), dtype=dtype)
    assert str(caught.value) == sentence


def test_a_quantised_start_finds_what_is_none_in_the_checkpoint(tmp_path: Path) -> None:
    broken = {DOWN: lambda weight: weight.index_fill(0, torch.tensor([3]), torch.nan)}
    options = {"device": "cpu", "dtype": "float32", "thread_count": 1, "quantization": "int8"}
    with pytest.raises(EngineStartError, match=f"the checkpoint's {DOWN} holds NaN"):
        started(write(tmp_path, **broken), torch=options)


async def test_what_overflows_in_float16_alone_is_served_in_the_others(tmp_path: Path) -> None:
    checkpoint = await asyncio.to_thread(write, tmp_path, **{DOWN: overflowing})
    for dtype in ("float32", "bfloat16"):
        engine = await asyncio.to_thread(started, checkpoint, dtype=dtype)
        assert len(await tokens_of(engine, EIGHT)) == 8
        await engine.close()


@pytest.fixture(scope="module")
def poisonous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that never chooses the poison itself: its logit is 0, and others are above."""
    row = torch.tensor([POISON])
    changes: dict[str, Change] = {
        "language_model.model.embed_tokens.weight": lambda it: it.index_fill(0, row, torch.inf),
        "language_model.lm_head.weight": lambda it: it.index_fill(0, row, 0.0),
    }
    return write(tmp_path_factory.mktemp("poisonous"), **changes)


@pytest.fixture(params=[False, True], ids=["in turn", "overlapping"])
async def start(
    poisonous: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[Start, None]:
    """Starts engines, of which some prepare a step before the last one's tokens are known."""
    monkeypatch.setattr(ModelRunner, "overlaps", property(lambda _: request.param))
    engines: list[LLMEngine] = []

    async def create(**options: Any) -> LLMEngine:
        engines.append(await asyncio.to_thread(started, poisonous, **options))
        return engines[-1]

    yield create
    for engine in engines:
        await engine.close()


async def results(
    engine: LLMEngine, *asked: tuple[Prompt, SamplingParams]
) -> list[list[int] | BaseException]:
    """Returns the tokens of requests that run side by side, or what has ended them."""
    answers = (tokens_of(engine, params, prompt) for prompt, params in asked)
    return await asyncio.gather(*answers, return_exceptions=True)


@pytest.mark.parametrize("params", KNOBS.values(), ids=KNOBS)
async def test_a_poisoned_request_ends_alone_however_its_tokens_are_chosen(
    start: Start, params: SamplingParams
) -> None:
    engine = await start()
    alone = [await tokens_of(engine, params, prompt) for prompt in (GOOD, OTHER)]
    bad, *others = await results(engine, (BAD, params), (GOOD, params), (OTHER, params))
    assert isinstance(bad, NonFiniteError)
    assert bad.message == "the language model's numbers are not finite in float32"
    assert others == alone
    assert engine.is_healthy()


@pytest.mark.parametrize("knob", ["greedy", "sampled", "penalised", "guided"])
async def test_who_shares_a_poisoned_prefix_is_computed_anew(
    start: Start, monkeypatch: pytest.MonkeyPatch, knob: str
) -> None:
    """Attention weighs what is masked by 0, so that a step's NaN reaches the tokens before it."""
    params = KNOBS[knob]
    reference = await start()
    expected = await tokens_of(reference, params, GOOD)
    gate = Gate(monkeypatch)
    engine = await start()
    gate.close()
    first = asyncio.ensure_future(results(engine, (OTHER, params)))
    await asyncio.to_thread(gate.entered.wait, PATIENCE_SECONDS)
    both = asyncio.ensure_future(results(engine, (BAD, params), (GOOD, params)))
    for _ in range(1000):  # until both are in the engine, guides compiled
        if engine.load().waiting_sequence_count == 2:
            break
        await asyncio.sleep(0.005)
    gate.open()
    bad, good = await both
    await first
    batches = [[sequence.prompt for sequence in batch] for batch in gate.batches]
    assert any(BAD in batch and GOOD in batch for batch in batches)
    assert isinstance(bad, NonFiniteError)
    assert good == expected


async def test_poisoned_blocks_are_neither_found_again_nor_felt_by_their_next_owner(
    start: Start,
) -> None:
    alone = await start()
    expected = [await tokens_of(alone, EIGHT, prompt) for prompt in (GOOD, OTHER)]
    # Room for little more than one sequence: blocks change hands at once.
    engine = await start(kv_cache_byte_count=6 * 4 * 2 * 2 * 2 * 8 * 4)
    for _ in range(3):
        (bad,) = await results(engine, (BAD, EIGHT))
        assert isinstance(bad, NonFiniteError)
        assert await results(engine, (OTHER, EIGHT)) == expected[1:]
        assert await results(engine, (GOOD, EIGHT)) == expected[:1]
    load = engine.load()
    assert load.free_kv_token_count == load.total_kv_token_count


async def test_a_scored_prompt_does_not_feel_the_former_owner_of_its_blocks(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last block has places behind it, which PyTorch's decodes read and weigh by 0."""
    monkeypatch.setattr("llm_service.engines.torch.model_runner.compiled_decode", lambda *_: None)
    params = KNOBS["with those of its prompt"]
    prompt = Prompt(HEAD[:5], NO_ROWS)
    alone = await start()
    expected = await tokens_of(alone, params, prompt)
    engine = await start(kv_cache_byte_count=6 * 4 * 2 * 2 * 2 * 8 * 4)
    for _ in range(3):
        (bad,) = await results(engine, (BAD, EIGHT))
        assert isinstance(bad, NonFiniteError)
        assert await results(engine, (prompt, params)) == [expected]


async def test_nobody_finds_what_a_poisoned_request_has_computed(start: Start) -> None:
    engine = await start()
    (bad,) = await results(engine, (BAD, EIGHT))
    assert isinstance(bad, NonFiniteError)
    counts = [(await outputs_of(engine, GOOD))[0].cached_token_count for _ in range(2)]
    assert counts == [0, 8]


def test_the_padding_of_a_block_table_is_the_sequences_own() -> None:
    """Of another's blocks not even what is weighed by 0 is read: its NaN would come through."""
    short, long = (Sequence(Prompt([1] * count, NO_ROWS), EIGHT, 1, 61) for count in (5, 13))
    short.block_table, long.block_table = array("i", [3, 4]), array("i", [9, 8, 7, 6])
    for sequence in (short, long):
        sequence.computed_count, sequence.scheduled_count = sequence.length - 1, 1
    short.slot, long.slot = 0, 1
    inputs = StepInputs.of([short, long], BlockTables(2, 8, 4), 61)
    assert inputs.block_tables(2).tolist() == [[3, 4, 3, 3], [9, 8, 7, 6]]


async def test_rows_that_are_not_finite_end_their_request(start: Start) -> None:
    engine = await start()
    table = torch.ones(4, HIDDEN_SIZE)
    table[2, 5] = torch.nan
    ids = [3, 61, 62, 63, 64, 5, 6, 7]
    prompt = Prompt(ids, table, (ImageRows(embedding_id("cat"), 4),))
    with pytest.raises(NonFiniteError):
        await tokens_of(engine, EIGHT, prompt)
    unheld = Prompt(ids, table, (ImageRows(embedding_id("cat"), 4, is_held=False),))
    with pytest.raises(RowsNeededError):
        await tokens_of(engine, EIGHT, unheld)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate"),
        MemoryError(),
    ],
    ids=["cuda", "host", "python"],
)
async def test_a_step_without_memory_ends_its_sequences_and_not_the_engine(
    start: Start, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    engine = await start()
    expected = await tokens_of(engine, EIGHT, GOOD)
    run, failing = ModelRunner.run, [True]

    def fail_once(runner: ModelRunner, sequences: list[Sequence]) -> StepOutputs:
        if failing:
            failing.clear()
            raise error
        return run(runner, sequences)

    monkeypatch.setattr(ModelRunner, "run", fail_once)
    with pytest.raises(OverloadedError, match="no memory for a step of 1 sequences"):
        await tokens_of(engine, EIGHT, Prompt([*HEAD, *HEAD], NO_ROWS))
    assert await tokens_of(engine, EIGHT, GOOD) == expected
    assert await tokens_of(engine, EIGHT, Prompt([*HEAD, *HEAD], NO_ROWS))
    load = engine.load()
    assert load.free_kv_token_count == load.total_kv_token_count
