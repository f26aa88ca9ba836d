"""The engine's promises to its callers: refusals, cancelling, stopping, seeds, death."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from blockbuster import blockbuster_ctx

from llm_service.checkpoint import LLMConfig
from llm_service.engines import ImageRows, LLMEngine, Prompt, RowsNeededError, create_engine
from llm_service.engines.torch_engine import engine as engine_module
from llm_service.engines.torch_engine.model_runner import ModelRunner
from llm_service.engines.torch_engine.sequence import Sequence
from llm_service.engines.torch_engine.step_outputs import StepOutputs
from llm_service.sampling import Guide, SamplingParams
from llm_service.settings import Settings
from protos.errors import (
    ContextLengthError,
    DeadlineError,
    EngineDeadError,
    InvalidArgumentError,
    InvalidTensorError,
    OverloadedError,
)
from tests.unit.llm_service.engine.answers import (
    CONTEXT,
    HIDDEN_SIZE,
    LONG,
    NO_ROWS,
    PROMPT,
    outputs_of,
    tokens_of,
)
from tests.unit.llm_service.engine.tiny import (
    QWEN2,
    random_tensors,
    tiny_tokenizer,
    write_checkpoint,
)

Start = Callable[..., Awaitable[LLMEngine]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), QWEN2, random_tensors(QWEN2))


@pytest.fixture(autouse=True)
def _nothing_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx():
        yield


@pytest.fixture
async def start(checkpoint: Path) -> AsyncGenerator[Start, None]:
    """Starts engines on the tiny checkpoint; closes them after the test."""
    engines: list[LLMEngine] = []

    async def create(**options: int) -> LLMEngine:
        options = {"kv_cache_byte_count": 2**22, **options}
        settings = Settings.model_validate(
            # In bfloat16, the default on some machines, batches of other sizes round otherwise.
            {"checkpoint": checkpoint, "device": "cpu", "dtype": "float32", **options}
        )
        config = await asyncio.to_thread(LLMConfig.from_checkpoint, checkpoint)
        engines.append(await asyncio.to_thread(create_engine, settings, config, tiny_tokenizer()))
        return engines[-1]

    yield create
    for engine in engines:
        await engine.close()


class Gate:
    """Lets the engine's forward passes through as permitted, and records their batches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[list[Sequence]] = []
        self.entered = threading.Event()
        self._permits = threading.Semaphore(0)
        run = ModelRunner.run

        def gated(runner: ModelRunner, sequences: list[Sequence]) -> StepOutputs:
            self.batches.append(list(sequences))
            self.entered.set()
            assert self._permits.acquire(timeout=30)
            return run(runner, sequences)

        monkeypatch.setattr(ModelRunner, "run", gated)

    def permit(self, step_count: int) -> None:
        self._permits.release(step_count)

    def open(self) -> None:
        self.permit(10_000)


async def test_streams_token_by_token_and_ends_by_length(start: Start) -> None:
    engine = await start()
    outputs = await outputs_of(engine, params=SamplingParams(max_tokens=3))
    assert [len(output.token_ids) for output in outputs] == [1, 1, 1]
    assert [output.finish_reason for output in outputs] == [None, None, "length"]


async def test_without_max_tokens_the_context_is_the_limit(start: Start) -> None:
    engine = await start()
    outputs = await outputs_of(engine, Prompt([1] * 500, NO_ROWS), SamplingParams())
    assert len(outputs) == CONTEXT - 500
    assert outputs[-1].finish_reason == "length"


async def test_stop_token_ends_and_is_in_the_output(start: Start) -> None:
    engine = await start()
    plain = await tokens_of(engine, SamplingParams(max_tokens=20))
    stop = plain[4]
    params = SamplingParams(max_tokens=20, stop_token_ids=frozenset({stop}))
    outputs = await outputs_of(engine, params=params)
    until_stop = plain[: plain.index(stop) + 1]
    assert [output.token_ids for output in outputs] == [[token_id] for token_id in until_stop]
    assert outputs[-1].finish_reason == "stop"


async def test_no_stop_token_before_mintokens_of(start: Start) -> None:
    engine = await start()
    plain = await tokens_of(engine, SamplingParams(max_tokens=20))
    params = SamplingParams(max_tokens=20, stop_token_ids=frozenset(plain), min_tokens=6)
    tokens = await tokens_of(engine, params)
    assert not set(tokens[:6]) & set(plain)


async def test_seed_gives_the_same_tokens_whatever_else_runs(start: Start) -> None:
    engine = await start()
    params = SamplingParams(temperature=1.5, seed=11, max_tokens=30)
    alone = await tokens_of(engine, params)
    others = [replace(params, seed=seed, max_tokens=5 + seed) for seed in range(6)]
    together = await asyncio.gather(*(tokens_of(engine, p) for p in [*others, params]))
    assert together[-1] == alone
    assert len({tuple(tokens[:5]) for tokens in together}) > 1


async def test_log_probabilities_of_the_tokens_and_the_best(start: Start) -> None:
    engine = await start()
    greedy = SamplingParams(max_tokens=6, logprob_count=3)
    outputs = await outputs_of(engine, params=greedy)
    for output in outputs:
        (logprob,) = output.logprobs
        assert logprob.token_id == output.token_ids[0] == logprob.top[0][0]
        assert logprob.logprob == logprob.top[0][1]
        assert len(logprob.top) == 3
        assert 0 > logprob.top[0][1] > logprob.top[1][1] > logprob.top[2][1]
    bare = await outputs_of(engine, params=replace(greedy, logprob_count=0))
    assert [output.logprobs[0].top for output in bare] == [()] * 6
    assert [output.logprobs[0].logprob for output in bare] == [
        output.logprobs[0].logprob for output in outputs
    ]
    assert {output.logprobs for output in await outputs_of(engine)} == {()}


async def test_a_bias_forbids_or_forces_a_token(start: Start) -> None:
    engine = await start()
    plain = await tokens_of(engine, SamplingParams(max_tokens=12))
    forbidden = SamplingParams(max_tokens=12, logit_bias=((plain[0], -100.0),))
    assert plain[0] not in await tokens_of(engine, forbidden)
    forced = SamplingParams(max_tokens=12, logit_bias=((7, 100.0),))
    assert await tokens_of(engine, forced) == [7] * 12


async def test_a_guide_holds_beside_free_sequences(start: Start) -> None:
    engine = await start()
    free = SamplingParams(max_tokens=12)
    guide = Guide("regex", "(cat|dog)(and(cat|dog))*")
    guided = SamplingParams(
        temperature=1.0, seed=3, max_tokens=300, guide=guide, stop_token_ids=frozenset({54})
    )
    expected = await tokens_of(engine, free)
    beside, tokens = await asyncio.gather(tokens_of(engine, free), tokens_of(engine, guided))
    assert beside == expected
    assert tokens[-1] == 54
    text = "".join(chr(97 + token_id) for token_id in tokens[:-1])
    assert re.fullmatch(guide.source, text)


async def test_refuses_a_bad_guide(start: Start) -> None:
    engine = await start()
    params = SamplingParams(guide=Guide("regex", "("), stop_token_ids=frozenset({54}))
    with pytest.raises(InvalidArgumentError, match=r"guided\.regex"):
        await outputs_of(engine, params=params)
    assert len(await outputs_of(engine)) == 8


async def test_rows_of_the_table_decide_and_its_dtype_is_converted(start: Start) -> None:
    engine = await start()
    table = torch.randn(4, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))
    ids = [3, 61, 62, 63, 64, 5]
    params = SamplingParams(max_tokens=12)
    tokens = await tokens_of(engine, params, Prompt(ids, table))
    rounded = table.bfloat16()
    assert await tokens_of(engine, params, Prompt(ids, rounded)) == await tokens_of(
        engine, params, Prompt(ids, rounded.float())
    )
    assert await tokens_of(engine, params, Prompt(ids, table.flip(0))) != tokens


async def test_rows_that_nobody_holds_are_asked_for_and_later_not_needed(start: Start) -> None:
    engine = await start(block_size=4)
    table = torch.randn(4, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))
    ids = [3, 61, 62, 63, 64, 5, 6, 7, 8, 9]
    params = SamplingParams(max_tokens=12)
    unheld = Prompt(ids, torch.zeros_like(table), (ImageRows(b"cat", 4, is_held=False),))
    with pytest.raises(RowsNeededError, match="dropped an image"):
        await outputs_of(engine, unheld, params)
    held = Prompt(ids, table, (ImageRows(b"cat", 4),))
    expected = await tokens_of(engine, params, held)
    assert await tokens_of(engine, params, unheld) == expected
    assert engine.load().running == engine.load().waiting == 0


@pytest.mark.parametrize(
    ("length", "max_tokens", "numbers"),
    [(500, 13, ("500", "13", "512")), (512, None, ("512", "1", "512"))],
)
async def test_refuses_what_exceeds_the_context(
    start: Start, length: int, max_tokens: int | None, numbers: tuple[str, ...]
) -> None:
    engine = await start()
    with pytest.raises(ContextLengthError) as caught:
        await outputs_of(
            engine, Prompt([1] * length, NO_ROWS), SamplingParams(max_tokens=max_tokens)
        )
    for number in numbers:
        assert number in caught.value.message


async def test_context_is_what_the_cache_holds_when_that_is_less(start: Start) -> None:
    # 2 layers x key and value x 2 heads x 8 floats: 256 bytes a token; 4 blocks of 16 tokens.
    engine = await start(kv_cache_byte_count=4 * 16 * 256, block_size=16)
    assert engine.context_length == engine.load().total_kv_tokens == 64
    assert len(await outputs_of(engine, Prompt([1] * 60, NO_ROWS), SamplingParams())) == 4
    with pytest.raises(ContextLengthError, match="64"):
        await outputs_of(engine, Prompt([1] * 60, NO_ROWS), SamplingParams(max_tokens=5))


@pytest.mark.parametrize(
    ("prompt", "params", "error", "message"),
    [
        (Prompt([], NO_ROWS), SamplingParams(), InvalidArgumentError, "at least 1 token"),
        (Prompt([-1], NO_ROWS), SamplingParams(), InvalidArgumentError, "from 0 to 60.*-1"),
        (Prompt([61], NO_ROWS), SamplingParams(), InvalidArgumentError, "from 0 to 60.*61"),
        (
            Prompt([1, 63], torch.empty(2, HIDDEN_SIZE)),
            SamplingParams(),
            InvalidArgumentError,
            "from 0 to 62.*63",
        ),
        (
            Prompt([1], torch.empty(2, 31)),
            SamplingParams(),
            InvalidTensorError,
            r"\[rows, 32\], but is \[2, 31\]",
        ),
        (
            PROMPT,
            SamplingParams(stop_token_ids=frozenset({61})),
            InvalidArgumentError,
            "stop.token_ids must be from 0 to 60, but one is 61",
        ),
    ],
)
async def test_refuses_what_it_cannot_look_up(
    start: Start,
    prompt: Prompt,
    params: SamplingParams,
    error: type[InvalidArgumentError],
    message: str,
) -> None:
    engine = await start()
    with pytest.raises(error, match=message):
        await outputs_of(engine, prompt, params)
    assert len(await outputs_of(engine)) == 8


async def test_refuses_when_too_many_wait(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await start(max_running_sequences=1, max_waiting_sequences=1)
    gate = Gate(monkeypatch)
    running = asyncio.ensure_future(outputs_of(engine))
    await asyncio.to_thread(gate.entered.wait)
    waiting = asyncio.ensure_future(outputs_of(engine))
    await asyncio.sleep(0)  # lets the task post its sequence
    assert (engine.load().running, engine.load().waiting) == (1, 1)
    with pytest.raises(
        OverloadedError, match="1 sequences wait already; max_waiting_sequences is 1"
    ) as caught:
        await outputs_of(engine)
    assert caught.value.retry_after == 1.0
    gate.open()
    assert [len(outputs) for outputs in await asyncio.gather(running, waiting)] == [8, 8]
    assert len(await outputs_of(engine)) == 8


async def test_closing_the_generator_frees_the_sequence_within_one_step(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start()
    gate = Gate(monkeypatch)
    gate.permit(1)
    async with aclosing(engine.generate(PROMPT, LONG)) as outputs:
        await outputs.__anext__()
        assert engine.load().running == 1
        assert engine.load().free_kv_tokens < engine.load().total_kv_tokens
    gate.open()
    # The abort was posted before this sequence, so it takes effect before it.
    assert len(await outputs_of(engine)) == 8
    cancelled = gate.batches[0][0]
    # The first step, and the one that may have begun before the closing.
    assert sum(cancelled in batch for batch in gate.batches) <= 2
    load = engine.load()
    assert (load.running, load.waiting) == (0, 0)
    assert load.free_kv_tokens == load.total_kv_tokens


async def test_a_waiting_sequence_can_be_cancelled(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start(max_running_sequences=1)
    gate = Gate(monkeypatch)
    running = asyncio.ensure_future(outputs_of(engine))
    await asyncio.to_thread(gate.entered.wait)
    waiting = asyncio.ensure_future(outputs_of(engine, params=LONG))
    await asyncio.sleep(0)  # lets the task post its sequence
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.open()
    assert len(await running) == 8
    assert {sequence for batch in gate.batches for sequence in batch} == {gate.batches[0][0]}
    assert engine.load().free_kv_tokens == engine.load().total_kv_tokens


@pytest.mark.parametrize("seconds", [0.05, -1])
async def test_time_over_ends_a_sequence(
    start: Start, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    engine = await start()
    gate = Gate(monkeypatch)
    with pytest.raises(DeadlineError, match="time was over"):
        await outputs_of(engine, deadline=time.monotonic() + seconds)
    gate.open()
    assert len(await outputs_of(engine, deadline=time.monotonic() + 60)) == 8
    assert engine.load().free_kv_tokens == engine.load().total_kv_tokens


async def test_death_of_the_thread_fails_every_request_at_once(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start(max_running_sequences=1)
    entered, broken = threading.Event(), threading.Event()

    def run(_: ModelRunner, __: list[Sequence]) -> StepOutputs:
        entered.set()
        assert broken.wait(30)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(ModelRunner, "run", run)
    requests = [asyncio.ensure_future(outputs_of(engine))]
    await asyncio.to_thread(entered.wait)
    requests += [asyncio.ensure_future(outputs_of(engine)) for _ in range(3)]
    await asyncio.sleep(0)  # lets the tasks post their sequences
    assert engine.is_healthy()
    broken.set()
    failures = await asyncio.gather(*requests, return_exceptions=True)
    assert [type(failure) for failure in failures] == [EngineDeadError] * 4
    assert not engine.is_healthy()
    with pytest.raises(EngineDeadError):
        await outputs_of(engine)


async def test_close_fails_what_is_running_and_what_comes_later(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start()
    gate = Gate(monkeypatch)
    running = asyncio.ensure_future(outputs_of(engine, params=LONG))
    await asyncio.to_thread(gate.entered.wait)
    closing = asyncio.ensure_future(engine.close())
    await asyncio.sleep(0)  # lets the task post its call
    gate.open()
    await closing
    with pytest.raises(EngineDeadError):
        await running
    assert len(gate.batches) == 1
    assert not engine.is_healthy()
    with pytest.raises(EngineDeadError):
        await outputs_of(engine)


async def test_a_request_posted_as_the_thread_ends_does_not_hang(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start()
    await engine.close()
    # As if the thread had ended just after the door was passed.
    monkeypatch.setattr(engine_module, "check_queue", lambda *_, **__: None)
    with pytest.raises(EngineDeadError):
        await asyncio.wait_for(outputs_of(engine), 30)
    assert engine.load().waiting == 0


async def test_is_warm_and_empty_at_the_start(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    gate.open()
    engine = await start()
    assert [len(batch) for batch in gate.batches] == [1, 1]
    assert engine.is_healthy()
    load = engine.load()
    assert (load.running, load.waiting) == (0, 0)
    assert load.free_kv_tokens == load.total_kv_tokens > 0


async def test_refuses_a_cache_without_room(start: Start) -> None:
    with pytest.raises(ValueError, match="the KV cache has 100 bytes, and one block needs 4096"):
        await start(kv_cache_byte_count=100)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_refuses_cuda_where_there_is_none(checkpoint: Path) -> None:
    settings = Settings(checkpoint=checkpoint, device="cuda")
    with pytest.raises(ValueError, match="no CUDA device"):
        create_engine(settings, LLMConfig.from_checkpoint(checkpoint), tiny_tokenizer())


def test_model_is_named_after_its_folder_unless_told(checkpoint: Path) -> None:
    assert Settings(checkpoint=checkpoint).model_name == checkpoint.name
    assert Settings(checkpoint=checkpoint, served_model_name="pilot").model_name == "pilot"
