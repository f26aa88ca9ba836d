"""What the torch engine promises besides what every engine does; see ../test_engines.py."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blockbuster import blockbuster_ctx

from llm_service.checkpoint import LLMConfig
from llm_service.engines import guides
from llm_service.engines.base import (
    Account,
    EngineStartError,
    ImageRows,
    LLMEngine,
    Prompt,
    Request,
    RowsNeededError,
)
from llm_service.engines.create import create_engine
from llm_service.engines.guides import MAX_COMPILING_COUNT, TokenMatcher
from llm_service.engines.torch import engine as engine_module
from llm_service.engines.torch.model_runner import ModelRunner
from llm_service.engines.torch.step_outputs import SampledToken, StepOutputs
from llm_service.sampling import Guide, SamplingParams
from llm_service.settings import Settings, TorchOptions
from protos.errors import EngineDeadError, InvalidArgumentError, OverloadedError
from tests.embedding_ids import embedding_id
from tests.known_callers import until
from tests.unit.llm_service.engines.torch.answers import (
    ENDS,
    HIDDEN_SIZE,
    LONG,
    PROMPT,
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

    async def create(
        block_size: int = 16, max_step_token_count: int | None = None, **options: int
    ) -> LLMEngine:
        # In bfloat16, the default on some machines, batches of other sizes round otherwise.
        torch_options = TorchOptions(
            device="cpu",
            dtype="float32",
            thread_count=1,
            block_size=block_size,
            max_step_token_count=max_step_token_count,
        )
        given = {"checkpoint": checkpoint, "torch": torch_options, "kv_cache_byte_count": 2**22}
        settings = await asyncio.to_thread(Settings.model_validate, given | options)
        config = await asyncio.to_thread(LLMConfig.from_checkpoint, checkpoint)
        engines.append(await asyncio.to_thread(create_engine, settings, config, tiny_tokenizer()))
        return engines[-1]

    yield create
    for engine in engines:
        await engine.close()


async def test_streams_token_by_token(start: Start) -> None:
    engine = await start()
    outputs = await outputs_of(engine, params=SamplingParams(max_tokens=20))
    assert [len(output.token_ids) for output in outputs] == [1] * 20
    assert [output.finish_reason for output in outputs] == [None] * 19 + ["length"]
    tokens = [token_id for output in outputs for token_id in output.token_ids]
    stop = tokens[4]
    params = SamplingParams(max_tokens=20, stop_token_ids=frozenset({stop}))
    outputs = await outputs_of(engine, params=params)
    until_stop = tokens[: tokens.index(stop) + 1]
    assert [output.token_ids for output in outputs] == [[token_id] for token_id in until_stop]
    assert outputs[-1].finish_reason == "stop"


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


async def test_rows_that_nobody_holds_are_asked_for_and_later_not_needed(start: Start) -> None:
    engine = await start(block_size=4)
    table = torch.randn(4, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))
    ids = [3, 61, 62, 63, 64, 5, 6, 7, 8, 9]
    params = SamplingParams(max_tokens=12)
    unheld = Prompt(
        ids, torch.zeros_like(table), (ImageRows(embedding_id("cat"), 4, is_held=False),)
    )
    with pytest.raises(RowsNeededError, match="dropped an image"):
        await outputs_of(engine, unheld, params)
    held = Prompt(ids, table, (ImageRows(embedding_id("cat"), 4),))
    expected = await tokens_of(engine, params, held)
    assert await tokens_of(engine, params, unheld) == expected
    assert engine.load().running_sequence_count == engine.load().waiting_sequence_count == 0


async def test_closing_the_generator_frees_the_sequence_within_one_step(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start()
    gate = Gate(monkeypatch)
    gate.close()
    gate.permit(1)
    async with aclosing(engine.generate(Request(PROMPT, LONG))) as outputs:
        await outputs.__anext__()
        assert engine.load().running_sequence_count == 1
        assert engine.load().free_kv_token_count < engine.load().total_kv_token_count
    gate.open()
    # The abort was posted before this sequence, so it takes effect before it.
    assert len(await tokens_of(engine, SamplingParams(max_tokens=8))) == 8
    cancelled = gate.batches[0][0]
    # The first step, and the one that may have begun before the closing.
    assert sum(cancelled in batch for batch in gate.batches) <= 2
    load = engine.load()
    assert (load.running_sequence_count, load.waiting_sequence_count) == (0, 0)
    assert load.free_kv_token_count == load.total_kv_token_count


async def test_a_table_stays_until_the_steps_that_copy_it_are_over(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its request is over, and none of its tokens was sampled."""
    engine = await start(max_step_token_count=16)
    monkeypatch.setattr(ModelRunner, "overlaps", True)
    gate = Gate(monkeypatch)
    gate.close()
    rows = np.zeros((24, HIDDEN_SIZE), np.float32)
    memory = weakref.ref(rows)
    virtual_ids = range(QWEN2["vocab_size"], QWEN2["vocab_size"] + len(rows))
    there: list[bool] = []
    read = StepOutputs.read

    def noting(outputs: StepOutputs) -> list[SampledToken]:
        there.append(memory() is not None)
        return read(outputs)

    monkeypatch.setattr(StepOutputs, "read", noting)
    asking = asyncio.create_task(
        outputs_of(engine, Prompt([3, *virtual_ids, 5], torch.from_numpy(rows)), LONG)
    )
    del rows
    await asyncio.to_thread(gate.entered.wait, PATIENCE_SECONDS)
    asking.cancel()
    await asyncio.wait([asking])
    del asking
    gate.batches.clear()
    gate.open()
    assert len(await tokens_of(engine, SamplingParams(max_tokens=8))) == 8
    assert there[0]
    assert not there[-1]


async def test_a_waiting_sequence_can_be_cancelled(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start(max_running_sequence_count=1)
    gate = Gate(monkeypatch)
    gate.close()
    running = asyncio.ensure_future(outputs_of(engine))
    await asyncio.to_thread(gate.entered.wait, PATIENCE_SECONDS)
    waiting = asyncio.ensure_future(outputs_of(engine, params=LONG))
    await asyncio.sleep(0)  # lets the task post its sequence
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.open()
    assert sum(len(output.token_ids) for output in await running) == 8
    assert {sequence for batch in gate.batches for sequence in batch} == {gate.batches[0][0]}
    assert engine.load().free_kv_token_count == engine.load().total_kv_token_count


def guided(source: str, **options: Any) -> SamplingParams:
    return SamplingParams(guide=Guide("regex", source), stop_token_ids=ENDS, **options)


SOME = SamplingParams(max_tokens=60)


class LateMasks:
    """Holds back masks, as a guide that takes long does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered = threading.Event()
        self.may_come = threading.Event()
        self.seconds = 0.0
        self.count = 0
        fill_mask = TokenMatcher.fill_mask

        def late(matcher: TokenMatcher, row: torch.Tensor, *, may_end: bool = True) -> None:
            self.count += 1
            self.entered.set()
            assert self.may_come.wait(PATIENCE_SECONDS)
            time.sleep(self.seconds)
            fill_mask(matcher, row, may_end=may_end)

        monkeypatch.setattr(TokenMatcher, "fill_mask", late)


async def test_a_late_mask_holds_up_nobody_else(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start()
    params = guided("[a-e]+", min_tokens=8, max_tokens=8)
    expected = await tokens_of(engine, params)
    masks = LateMasks(monkeypatch)
    late = asyncio.ensure_future(tokens_of(engine, params))
    await asyncio.to_thread(masks.entered.wait, PATIENCE_SECONDS)
    for _ in range(3):
        assert len(await asyncio.wait_for(tokens_of(engine, SOME), PATIENCE_SECONDS / 2)) == 60
    assert not late.done()
    masks.may_come.set()
    assert await late == expected


async def test_masks_of_requests_that_have_gone_are_not_computed(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start()
    await tokens_of(engine, guided("[a-c]+", max_tokens=3))
    masks = LateMasks(monkeypatch)
    gone = [asyncio.ensure_future(tokens_of(engine, guided("[a-c]+"))) for _ in range(4)]
    await asyncio.to_thread(masks.entered.wait, PATIENCE_SECONDS)
    await tokens_of(engine, SOME)
    for request in gone:
        request.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    await tokens_of(engine, SOME)  # behind the calls that drop them
    masks.may_come.set()
    await tokens_of(engine, guided("[a-c]+", max_tokens=1))
    assert masks.count == 2


async def test_sequences_that_sit_out_steps_get_the_same_tokens(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start()
    several = [
        guided("[a-z]+", min_tokens=12, max_tokens=12, temperature=1.0, seed=seed)
        for seed in range(3)
    ]
    expected = [await tokens_of(engine, params) for params in several]
    plain = await tokens_of(engine, SOME)
    masks = LateMasks(monkeypatch)
    masks.may_come.set()
    masks.seconds = 0.02  # several times as long as a step waits
    *late, beside = await asyncio.gather(
        *(tokens_of(engine, params) for params in several), tokens_of(engine, SOME)
    )
    assert late == expected
    assert beside == plain


async def test_a_guide_that_takes_too_long_ends_its_request_alone(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start()
    await tokens_of(engine, guided("[a-c]+", max_tokens=3))  # compiled
    monkeypatch.setattr(guides, "MASK_CREDIT_SECONDS", 0.0)
    monkeypatch.setattr(guides, "SECONDS_PER_MASK", 1e-9)
    plain = asyncio.ensure_future(tokens_of(engine, SOME))
    with pytest.raises(InvalidArgumentError, match="takes too long to follow: 1 token") as failure:
        await tokens_of(engine, guided("[a-c]+", max_tokens=30))
    assert failure.value.field == "guided.regex"
    assert len(await plain) == 60
    assert engine.load().free_kv_token_count == engine.load().total_kv_token_count


async def test_masks_that_cannot_be_computed_end_the_engine_and_nobody_hangs(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several fail while a step runs; the engine ends at the first, and comes upon the others."""
    engine = await start()
    assert isinstance(engine, engine_module.TorchEngine)
    may_fail = threading.Event()

    def broken(*_: object, **__: object) -> None:
        assert may_fail.wait(PATIENCE_SECONDS)
        raise RuntimeError("no such pointer")

    monkeypatch.setattr(TokenMatcher, "fill_mask", broken)
    gate = Gate(monkeypatch)
    gate.close()
    requests = [asyncio.ensure_future(tokens_of(engine, SOME))]
    await asyncio.to_thread(gate.entered.wait, PATIENCE_SECONDS)
    requests += [asyncio.ensure_future(tokens_of(engine, guided("[a-c]+"))) for _ in range(3)]
    await until(lambda: engine._inbox.qsize() == 3, PATIENCE_SECONDS)
    gate.entered.clear()
    gate.permit(1)
    await asyncio.to_thread(gate.entered.wait, PATIENCE_SECONDS)
    may_fail.set()
    await until(lambda: engine._inbox.qsize() == 3, PATIENCE_SECONDS)
    gate.open()
    ends = await asyncio.wait_for(asyncio.gather(*requests, return_exceptions=True), 30)
    assert [type(end) for end in ends] == [EngineDeadError] * 4
    assert not engine.is_healthy()


class SlowTrial:
    """A trial of guides that takes until it may end, and refuses them all.

    Attributes:
        tried: the grammars so far.
    """

    def __init__(self) -> None:
        self.tried: list[str] = []
        self.entered, self.may_end = threading.Event(), threading.Event()

    def __call__(self, grammar: str) -> str:
        self.tried.append(grammar)
        self.entered.set()
        assert self.may_end.wait(PATIENCE_SECONDS)
        return "it takes too much time"


async def test_guides_to_be_compiled_hold_up_guides_and_nothing_else(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start()
    known = guided("[a-d]+", max_tokens=3)
    await tokens_of(engine, known)
    trial = SlowTrial()
    monkeypatch.setattr(guides, "_trial", trial)
    refused = [
        asyncio.ensure_future(tokens_of(engine, guided(f"a{{{count}}}", max_tokens=3)))
        for count in [*range(1, MAX_COMPILING_COUNT + 1)] * 2
    ]
    # In the default executor, whose threads all but guides use.
    assert await asyncio.to_thread(trial.entered.wait, PATIENCE_SECONDS)
    with pytest.raises(OverloadedError, match="16 guides wait to be compiled") as overload:
        await tokens_of(engine, guided("one too many", max_tokens=3))
    assert overload.value.retry_after
    assert await tokens_of(engine, known)
    assert len(await tokens_of(engine, SOME)) == 60
    assert not any(request.done() for request in refused)
    trial.may_end.set()
    failures = await asyncio.gather(*refused, return_exceptions=True)
    assert {type(failure) for failure in failures} == {InvalidArgumentError}
    assert len(trial.tried) == MAX_COMPILING_COUNT  # once each, though each was asked for twice
    with pytest.raises(InvalidArgumentError, match="too much time"):
        await tokens_of(engine, guided("a{1}", max_tokens=3))
    assert len(trial.tried) == MAX_COMPILING_COUNT


async def test_a_guide_that_nobody_waits_for_any_more_is_not_compiled(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start()
    trial = SlowTrial()
    monkeypatch.setattr(guides, "_trial", trial)
    tasks = [
        asyncio.ensure_future(tokens_of(engine, guided(source, max_tokens=3)))
        for source in ("a", "b", "b", "c", "c")
    ]
    assert await asyncio.to_thread(trial.entered.wait, PATIENCE_SECONDS)
    for left in (tasks[0], tasks[1], tasks[2], tasks[3]):
        left.cancel()
        await asyncio.wait({left})
    again = asyncio.ensure_future(tokens_of(engine, guided("b", max_tokens=3)))
    await asyncio.sleep(0)
    trial.may_end.set()
    failures = await asyncio.gather(tasks[4], again, return_exceptions=True)
    assert {type(failure) for failure in failures} == {InvalidArgumentError}
    # "a" had begun, and is known from now on; "b" was dropped, and came again behind "c".
    assert len(trial.tried) == 3
    assert "c" in trial.tried[1]
    assert "b" in trial.tried[2]
    with pytest.raises(InvalidArgumentError, match="too much time"):
        await tokens_of(engine, guided("a", max_tokens=3))
    assert len(trial.tried) == 3


async def test_choices_leave_room_in_the_queue_for_others(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start(max_running_sequence_count=1, max_waiting_sequence_count=8)
    gate = Gate(monkeypatch)
    gate.close()
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(outputs_of(engine))]
    await asyncio.to_thread(gate.entered.wait, PATIENCE_SECONDS)
    account = Account()

    async def choice() -> int:
        async with aclosing(engine.generate(Request(PROMPT, LONG, account=account))) as outputs:
            return sum([len(output.token_ids) async for output in outputs])

    tasks += (asyncio.ensure_future(choice()) for _ in range(6))
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError, match="at most 6 may where a request has several choices"):
        await choice()
    tasks += (asyncio.ensure_future(outputs_of(engine)) for _ in range(2))
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError, match="8 sequences wait already, and at most 8 may"):
        await outputs_of(engine)
    for task in tasks:
        task.cancel()
    gate.open()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert account.sequence_count == 0


async def test_a_request_posted_as_the_thread_ends_does_not_hang(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start()
    await engine.close()
    # As if the thread had ended just after the door was passed.
    monkeypatch.setattr(engine_module, "check_queue", lambda *_, **__: None)
    with pytest.raises(EngineDeadError):
        await asyncio.wait_for(outputs_of(engine), 30)
    assert engine.load().waiting_sequence_count == 0


async def test_is_warm_at_the_start(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    await start()
    assert [len(batch) for batch in gate.batches] == [1, 1]


async def test_refuses_a_cache_without_room(start: Start) -> None:
    with pytest.raises(
        EngineStartError, match="the KV cache has 100 bytes, and one block needs 4096"
    ):
        await start(kv_cache_byte_count=100)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_refuses_cuda_where_there_is_none(checkpoint: Path) -> None:
    settings = Settings(checkpoint=checkpoint, torch=TorchOptions(device="cuda"))
    with pytest.raises(EngineStartError, match="no CUDA device"):
        create_engine(settings, LLMConfig.from_checkpoint(checkpoint), tiny_tokenizer())


def test_model_is_named_after_its_folder_unless_told(checkpoint: Path) -> None:
    assert Settings(checkpoint=checkpoint).model_names == (checkpoint.name,)
    settings = Settings(checkpoint=checkpoint, served_model_name=("pilot", "gpt-4o", "pilot"))
    assert settings.model_names == ("pilot", "gpt-4o")
