"""What every engine promises to its callers; TensorRT-LLM is its double, which computes with torch.

Each promises it at the other end of a link as well.

What one engine alone promises is in engines/torch and engines/tensorrt_llm, test_engine.py.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from blockbuster import blockbuster_ctx

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import Account, LLMEngine, Prompt, Request
from llm_service.engines.create import create_engine
from llm_service.sampling import Guide, SamplingParams
from llm_service.settings import Settings, TensorRTLLMOptions, TorchOptions
from protos.errors import (
    ContextLengthError,
    DeadlineError,
    EngineDeadError,
    InvalidArgumentError,
    InvalidTensorError,
    OverloadedError,
    ServiceError,
)
from protos.process.settings import EngineOptions
from tests.threaded_host import ThreadedEngine
from tests.unit.llm_service.engines.tensorrt_llm.double import installed_double
from tests.unit.llm_service.engines.tensorrt_llm.engine_folders import (
    engine_document,
    write_engine_folder,
)
from tests.unit.llm_service.engines.torch.answers import (
    CONTEXT,
    ENDS,
    HIDDEN_SIZE,
    LONG,
    NO_ROWS,
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

EIGHT = SamplingParams(max_tokens=8)

Start = Callable[..., Awaitable[LLMEngine]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), QWEN2, random_tensors(QWEN2))


@pytest.fixture(scope="module")
def engine_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    document = engine_document(LLMConfig.from_checkpoint(checkpoint))
    return write_engine_folder(tmp_path_factory.mktemp("engine"), document, checkpoint)


@pytest.fixture(autouse=True)
def _nothing_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx():
        yield


@pytest.fixture(params=["torch", "tensorrt_llm"])
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    """The engine's name; it can be imported."""
    with installed_double() if request.param == "tensorrt_llm" else nullcontext():
        yield request.param


@pytest.fixture(params=["here", pytest.param("elsewhere", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest) -> str:
    """Where the engine is called: here, or at the other end of a link."""
    named: str = request.param
    return named


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


@pytest.fixture
async def start(
    name: str, place: str, checkpoint: Path, engine_folder: Path, gate: Gate
) -> AsyncGenerator[Start, None]:
    """Starts engines on the tiny checkpoint; closes them after the test."""
    engines: list[LLMEngine] = []

    groups: dict[str, EngineOptions] = {
        # In bfloat16, the default on some machines, batches of other sizes round otherwise.
        "torch": TorchOptions(device="cpu", dtype="float32", thread_count=1),
        "tensorrt_llm": TensorRTLLMOptions(engine_folder=engine_folder, max_request_tile_count=1),
    }

    def create(options: dict[str, int]) -> LLMEngine:
        given: dict[str, Any] = {
            "checkpoint": checkpoint,
            "engine": name,
            name: groups[name],
            "kv_cache_byte_count": 2**22,
        }
        settings = Settings.model_validate(given | options)
        return create_engine(settings, LLMConfig.from_checkpoint(checkpoint), tiny_tokenizer())

    async def started(**options: int) -> LLMEngine:
        engine = await asyncio.to_thread(create, options)
        engines.append(engine if place == "here" else ThreadedEngine(engine))
        return engines[-1]

    yield started
    gate.open()
    for engine in engines:
        await engine.close()


@pytest.fixture
def kill(name: str, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Ends the engine for good: a step of its own fails, or its executor has gone."""

    def gone(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("Shutdown called, cannot await responses")

    def killed() -> None:
        if name == "torch":
            gate.is_broken = True
            gate.open()
        else:
            monkeypatch.setattr("tensorrt_llm.bindings.executor.Executor.await_responses", gone)

    return killed


async def test_is_healthy_and_empty_at_the_start(start: Start) -> None:
    engine = await start()
    assert engine.is_healthy()
    load = engine.load()
    assert (load.running_sequence_count, load.waiting_sequence_count) == (0, 0)
    assert load.free_kv_token_count == load.total_kv_token_count > 0


async def test_ends_by_length(start: Start) -> None:
    engine = await start()
    outputs = await outputs_of(engine, params=SamplingParams(max_tokens=3))
    assert sum(len(output.token_ids) for output in outputs) == 3
    assert outputs[-1].finish_reason == "length"


async def test_without_max_tokens_the_context_is_the_limit(start: Start) -> None:
    engine = await start()
    outputs = await outputs_of(engine, Prompt([1] * 500, NO_ROWS), SamplingParams())
    assert sum(len(output.token_ids) for output in outputs) == CONTEXT - 500
    assert outputs[-1].finish_reason == "length"


async def test_a_stop_token_ends_and_is_in_the_output(start: Start) -> None:
    engine = await start()
    plain = await tokens_of(engine, SamplingParams(max_tokens=20))
    stop = frozenset({plain[4], plain[9]})
    params = SamplingParams(max_tokens=20, stop_token_ids=stop)
    assert await tokens_of(engine, params) == plain[: min(map(plain.index, stop)) + 1]
    assert (await outputs_of(engine, params=params))[-1].finish_reason == "stop"


async def test_no_stop_token_before_min_tokens(start: Start) -> None:
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


async def test_two_requests_without_a_seed_differ(start: Start) -> None:
    engine = await start()
    params = SamplingParams(max_tokens=20, temperature=2.0)
    assert await tokens_of(engine, params) != await tokens_of(engine, params)


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
        temperature=1.0, seed=3, max_tokens=300, guide=guide, stop_token_ids=ENDS
    )
    expected = await tokens_of(engine, free)
    beside, tokens = await asyncio.gather(tokens_of(engine, free), tokens_of(engine, guided))
    assert beside == expected
    assert tokens[-1] in ENDS
    text = "".join(chr(97 + token_id) for token_id in tokens[:-1])
    assert re.fullmatch(guide.source, text)


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


@pytest.mark.parametrize("length", [512, 600])
async def test_refuses_a_prompt_that_leaves_no_room(start: Start, length: int) -> None:
    engine = await start()
    prompt = Prompt([1] * length, NO_ROWS, field="text")
    sentence = (
        f"prompt is too long: it has {length} tokens, .* This model's maximum context length is"
        " 512 tokens;"
    )
    with pytest.raises(ContextLengthError, match=sentence) as caught:
        await outputs_of(engine, prompt, SamplingParams(max_tokens=1))
    assert caught.value.field == "text"


async def test_a_limit_above_the_room_left_is_lowered(start: Start) -> None:
    engine = await start()
    params = SamplingParams(max_tokens=2**31 - 1)
    outputs = await outputs_of(engine, Prompt([1] * 508, NO_ROWS), params)
    assert sum(len(output.token_ids) for output in outputs) == 4
    assert outputs[-1].finish_reason == "length"


async def test_no_mass_at_all_is_the_most_probable_token(start: Start) -> None:
    engine = await start()
    params = SamplingParams(max_tokens=20)
    sampled = replace(params, temperature=1.0, top_p=0.0)
    assert await tokens_of(engine, sampled) == await tokens_of(engine, params)


async def test_seeds_differ_by_their_sign(start: Start) -> None:
    engine = await start()
    params = SamplingParams(max_tokens=20, temperature=1.5)
    seeds = [-1, 1, -(2**63), 2**63 - 1, -1]
    first, *others, again = [await tokens_of(engine, replace(params, seed=s)) for s in seeds]
    assert first == again
    assert len({tuple(tokens) for tokens in (first, *others)}) == 4


async def test_context_is_what_the_cache_holds_when_that_is_less(start: Start) -> None:
    # 2 layers x key and value x 2 heads x 8 floats: 256 bytes a token; 4 blocks of 16 tokens.
    engine = await start(kv_cache_byte_count=4 * 16 * 256)
    assert engine.context_length == engine.load().total_kv_token_count == 64
    assert len(await tokens_of(engine, SamplingParams(), Prompt([1] * 60, NO_ROWS))) == 4
    with pytest.raises(ContextLengthError, match="64"):
        await outputs_of(engine, Prompt([1] * 64, NO_ROWS), SamplingParams())


@pytest.mark.parametrize(
    ("prompt", "params", "error", "message"),
    [
        (
            Prompt([], NO_ROWS),
            SamplingParams(),
            InvalidArgumentError,
            "0 tokens; it must have at least 1",
        ),
        (
            Prompt([-1], NO_ROWS),
            SamplingParams(),
            InvalidArgumentError,
            "token id is -1; it must be 0 to 60",
        ),
        (
            Prompt([61], NO_ROWS),
            SamplingParams(),
            InvalidArgumentError,
            "token id is 61; it must be 0 to 60",
        ),
        (
            Prompt([1, 63], torch.empty(2, HIDDEN_SIZE)),
            SamplingParams(),
            InvalidArgumentError,
            "token id is 63; it must be 0 to 62",
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
            "a stop token's id is 61; it must be 0 to 60",
        ),
        (
            PROMPT,
            SamplingParams(guide=Guide("regex", "("), stop_token_ids=ENDS),
            InvalidArgumentError,
            "the regular expression cannot be followed",
        ),
    ],
)
async def test_refuses_what_it_could_not_run(
    start: Start,
    gate: Gate,
    prompt: Prompt,
    params: SamplingParams,
    error: type[ServiceError],
    message: str,
) -> None:
    engine = await start()
    step_count = len(gate.batches)
    with pytest.raises(error, match=message):
        await outputs_of(engine, prompt, params)
    assert len(gate.batches) == step_count
    assert engine.load().waiting_sequence_count == 0
    assert len(await tokens_of(engine, EIGHT)) == 8


async def test_a_guide_is_checked_as_a_request_has_it(start: Start) -> None:
    engine = await start()
    guide, bad = Guide("regex", "[ab]+"), Guide("json_schema", '{"items": {"contains": {}}}')
    await engine.check_guide(guide)
    params = SamplingParams(guide=guide, stop_token_ids=ENDS, max_tokens=2)
    assert await tokens_of(engine, params)
    with pytest.raises(InvalidArgumentError) as checked:
        await engine.check_guide(bad)
    with pytest.raises(InvalidArgumentError) as asked:
        await tokens_of(engine, SamplingParams(guide=bad, stop_token_ids=ENDS))
    assert checked.value.field == asked.value.field == "guided.json_schema.items.contains"
    assert checked.value.message == asked.value.message
    await engine.close()
    with pytest.raises(EngineDeadError):
        await engine.check_guide(guide)


async def test_refuses_when_too_many_wait(start: Start, gate: Gate) -> None:
    engine = await start(max_running_sequence_count=1, max_waiting_sequence_count=2)
    gate.close()
    requests = [asyncio.ensure_future(tokens_of(engine, EIGHT))]
    await asyncio.to_thread(gate.entered.wait, PATIENCE_SECONDS)
    while engine.load().waiting_sequence_count < 2:
        requests.append(asyncio.ensure_future(tokens_of(engine, EIGHT)))
        await asyncio.sleep(0)  # lets the task post its request
    assert engine.load().running_sequence_count + engine.load().waiting_sequence_count == len(
        requests
    )
    with pytest.raises(
        OverloadedError, match="2 sequences wait already, and at most 2 may"
    ) as caught:
        await outputs_of(engine)
    assert caught.value.retry_after == 1.0
    gate.open()
    assert [len(tokens) for tokens in await asyncio.gather(*requests)] == [8] * len(requests)
    assert len(await tokens_of(engine, EIGHT)) == 8


async def test_the_load_tells_how_many_could_start_at_once(start: Start, gate: Gate) -> None:
    engine = await start(max_running_sequence_count=2)

    async def until_startable(count: int) -> None:
        while engine.load().startable_sequence_count != count:
            gate.permit(1)
            await asyncio.sleep(0.01)

    assert engine.load().startable_sequence_count == 2
    gate.close()
    requests = [asyncio.ensure_future(tokens_of(engine, LONG)) for _ in range(3)]
    await asyncio.wait_for(until_startable(0), PATIENCE_SECONDS)
    gate.open()
    await asyncio.gather(*requests)
    await asyncio.wait_for(until_startable(2), PATIENCE_SECONDS)


async def test_an_account_tells_when_the_engine_began(start: Start, gate: Gate) -> None:
    engine = await start(max_running_sequence_count=1)
    first, second = Account(), Account()
    asked = time.monotonic()
    gate.close()

    async def answer(account: Account) -> None:
        request = Request(PROMPT, EIGHT, account=account)
        async with aclosing(engine.generate(request)) as outputs:
            async for _ in outputs:
                assert account.started_at is not None
                assert account.started_at <= time.monotonic()

    running = asyncio.ensure_future(answer(first))
    await asyncio.to_thread(gate.entered.wait, PATIENCE_SECONDS)
    waiting = asyncio.ensure_future(answer(second))
    await asyncio.sleep(0.1)
    opened = time.monotonic()
    gate.open()
    await asyncio.gather(running, waiting)
    assert first.started_at is not None
    assert second.started_at is not None
    assert asked < first.started_at < opened < second.started_at < time.monotonic()


async def test_of_several_choices_the_first_one_begins(start: Start) -> None:
    engine = await start(max_running_sequence_count=1)
    account, request = Account(), Request(PROMPT, EIGHT)
    started = []
    for _ in range(2):
        async with aclosing(engine.generate(replace(request, account=account))) as outputs:
            async for _ in outputs:
                started.append(account.started_at)
    assert len(set(started)) == 1


async def test_closing_the_generator_ends_the_sequence(start: Start, gate: Gate) -> None:
    engine = await start(max_running_sequence_count=1)
    warm_up_count = len(gate.batches)
    gate.close()
    gate.permit(1)
    async with aclosing(engine.generate(Request(PROMPT, LONG))) as outputs:
        await outputs.__anext__()
    gate.open()
    # Nothing else runs before the first one has gone.
    assert len(await tokens_of(engine, EIGHT)) == 8
    closed = gate.batches[warm_up_count][0]
    assert LONG.max_tokens is not None
    assert sum(closed in batch for batch in gate.batches) < LONG.max_tokens
    load = engine.load()
    assert (load.running_sequence_count, load.waiting_sequence_count) == (0, 0)
    assert load.free_kv_token_count == load.total_kv_token_count


@pytest.mark.parametrize("seconds", [0.05, -1])
async def test_time_over_ends_a_sequence(start: Start, gate: Gate, seconds: float) -> None:
    engine = await start()
    gate.close()
    with pytest.raises(DeadlineError, match="time was over"):
        await outputs_of(engine, deadline=time.monotonic() + seconds)
    gate.open()
    outputs = await outputs_of(engine, deadline=time.monotonic() + 60)
    assert sum(len(output.token_ids) for output in outputs) == 8
    assert engine.load().waiting_sequence_count == 0
    assert engine.load().free_kv_token_count == engine.load().total_kv_token_count


async def test_death_fails_every_request_at_once(
    start: Start, gate: Gate, kill: Callable[[], None]
) -> None:
    engine = await start(max_running_sequence_count=1)
    gate.close()
    requests = [asyncio.ensure_future(outputs_of(engine)) for _ in range(4)]
    await asyncio.to_thread(gate.entered.wait, PATIENCE_SECONDS)
    assert engine.is_healthy()
    kill()
    failures = await asyncio.gather(*requests, return_exceptions=True)
    assert [type(failure) for failure in failures] == [EngineDeadError] * 4
    assert not engine.is_healthy()
    with pytest.raises(EngineDeadError):
        await outputs_of(engine)


async def test_close_fails_what_is_running_and_what_comes_later(start: Start, gate: Gate) -> None:
    engine = await start()
    gate.close()
    running = asyncio.ensure_future(outputs_of(engine, params=LONG))
    await asyncio.to_thread(gate.entered.wait, PATIENCE_SECONDS)
    closing = asyncio.ensure_future(engine.close())
    await asyncio.sleep(0)  # lets the task post its call
    gate.permit(1)  # of the step that has begun; another one would wait longer than this test
    with pytest.raises(EngineDeadError):
        await asyncio.wait_for(running, PATIENCE_SECONDS / 2)
    gate.open()
    await closing
    assert not engine.is_healthy()
    with pytest.raises(EngineDeadError):
        await outputs_of(engine)


async def test_the_load_tells_of_the_steps(start: Start) -> None:
    engine = await start()
    before = engine.load().steps
    await tokens_of(engine, EIGHT)
    await engine.close()  # after which nothing changes any more
    after = engine.load().steps
    assert after.step_count > before.step_count
    assert after.seconds > before.seconds
    assert after.token_count > before.token_count
