"""What the TensorRT-LLM engine promises besides what every engine does; see ../test_engines.py."""

from __future__ import annotations

import asyncio
import importlib
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from blockbuster import blockbuster_ctx

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import (
    Account,
    ImageRows,
    LLMEngine,
    Prompt,
    Request,
    RowsNeededError,
)
from llm_service.engines.create import create_engine
from llm_service.sampling import SamplingParams
from llm_service.settings import Settings, TensorRTLLMOptions, TorchOptions
from protos.errors import (
    ContextLengthError,
    DeadlineError,
    EngineDeadError,
    NonFiniteError,
    OverloadedError,
    ServiceError,
    UnsupportedFieldError,
)
from tests.embedding_ids import embedding_id
from tests.unit.llm_service.engines.tensorrt_llm.double import spoil_log_probs
from tests.unit.llm_service.engines.tensorrt_llm.engine_folders import (
    engine_document,
    write_engine_folder,
)
from tests.unit.llm_service.engines.torch.answers import (
    HIDDEN_SIZE,
    LONG,
    NO_ROWS,
    PROMPT,
    outputs_of,
    tokens_of,
)
from tests.unit.llm_service.engines.torch.tiny import (
    QWEN2,
    random_tensors,
    tiny_tokenizer,
    write_checkpoint,
)

TABLE = torch.randn(4, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))
PICTURE = Prompt([3, 61, 62, 63, 64, 5, 6, 7, 8, 9], TABLE, (ImageRows(embedding_id("cat"), 4),))

Start = Callable[..., Awaitable[LLMEngine]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), QWEN2, random_tensors(QWEN2))


@pytest.fixture(autouse=True)
def _nothing_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx():
        yield


@pytest.fixture
def executors(bindings: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The double's executors, as they are made."""
    made: list[Any] = []

    def recorded(*args: Any) -> Any:
        made.append(executor(*args))
        return made[-1]

    executor = bindings.Executor
    monkeypatch.setattr(bindings, "Executor", recorded)
    return made


@pytest.fixture
async def start(
    checkpoint: Path, tmp_path: Path, executors: list[Any]
) -> AsyncGenerator[Start, None]:
    """Starts adapters on an engine of the tiny checkpoint; closes them after the test."""
    engines: list[LLMEngine] = []

    def create(build: dict[str, int], reuse: bool, options: dict[str, Any]) -> LLMEngine:
        config = LLMConfig.from_checkpoint(checkpoint)
        folder = write_engine_folder(
            tmp_path / "engine", engine_document(config, build=build), checkpoint
        )
        settings = Settings.model_validate(
            {
                "checkpoint": checkpoint,
                "engine": "tensorrt_llm",
                "tensorrt_llm": TensorRTLLMOptions(
                    engine_folder=folder, max_request_tile_count=1, kv_cache_reuse=reuse
                ),
                **options,
            }
        )
        return create_engine(settings, config, tiny_tokenizer())

    async def started(
        build: dict[str, int] | None = None, *, reuse: bool = True, **options: Any
    ) -> LLMEngine:
        engines.append(await asyncio.to_thread(create, build or {}, reuse, options))
        return engines[-1]

    yield started
    for executor in executors:
        executor.gate.set()
    for engine in engines:
        await engine.close()


@pytest.fixture
async def torch_engine(checkpoint: Path) -> AsyncGenerator[LLMEngine, None]:
    options = TorchOptions(device="cpu", dtype="float32", thread_count=1)
    given = {"checkpoint": checkpoint, "torch": options, "kv_cache_byte_count": 2**22}
    settings = await asyncio.to_thread(Settings.model_validate, given)
    config = await asyncio.to_thread(LLMConfig.from_checkpoint, checkpoint)
    engine = await asyncio.to_thread(create_engine, settings, config, tiny_tokenizer())
    yield engine
    await engine.close()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=9),
        SamplingParams(max_tokens=40, stop_token_ids=frozenset({1, 7, 20, 33, 48})),
        SamplingParams(max_tokens=40, stop_token_ids=frozenset({1, 7, 20, 33, 48}), min_tokens=25),
        SamplingParams(max_tokens=9, logit_bias=((7, 100.0),)),
        SamplingParams(max_tokens=20, temperature=1.5, seed=11),
        SamplingParams(max_tokens=20, temperature=1.0, seed=11, top_k=5, top_p=0.9, min_p=0.05),
        SamplingParams(
            max_tokens=20, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.25
        ),
    ],
)
@pytest.mark.parametrize("prompt", [PROMPT, PICTURE])
async def test_tokens_are_those_of_the_torch_engine(
    start: Start, torch_engine: LLMEngine, prompt: Prompt, params: SamplingParams
) -> None:
    engine = await start()
    expected = await tokens_of(torch_engine, params, prompt)
    # Twice, as odd and even requests end in one response or in two.
    assert await tokens_of(engine, params, prompt) == expected
    assert await tokens_of(engine, params, prompt) == expected


async def test_streams_what_responses_carry_and_drops_the_empty_ones(start: Start) -> None:
    engine = await start()
    outputs = await outputs_of(engine, params=SamplingParams(max_tokens=8))
    # Responses that come before anybody takes them are one output.
    assert sum(len(output.token_ids) for output in outputs) == 8
    assert all(output.token_ids for output in outputs[:-1])
    assert outputs[-1].finish_reason == "length"


async def test_each_token_has_its_log_probability(start: Start, torch_engine: LLMEngine) -> None:
    engine = await start()
    params = SamplingParams(max_tokens=9, logprob_count=0)
    expected = [
        one for output in await outputs_of(torch_engine, params=params) for one in output.logprobs
    ]
    outputs = await outputs_of(engine, params=params)
    logprobs = [one for output in outputs for one in output.logprobs]
    assert [one.token_id for one in logprobs] == [one.token_id for one in expected]
    assert [one.logprob for one in logprobs] == pytest.approx([one.logprob for one in expected])
    assert [len(output.logprobs) for output in outputs] == [
        len(output.token_ids) for output in outputs
    ]
    assert {output.logprobs for output in await outputs_of(engine)} == {()}


async def test_log_probabilities_are_not_relative_to_top_k(
    start: Start, executors: list[Any]
) -> None:
    await start()
    assert executors[0].config.normalize_log_probs is False


async def test_an_image_is_recognised_by_its_id(start: Start) -> None:
    engine = await start()
    params = SamplingParams(max_tokens=4)
    assert (await outputs_of(engine, PICTURE, params))[-1].cached_token_count == 0
    assert (await outputs_of(engine, PICTURE, params))[-1].cached_token_count == 8
    other = replace(PICTURE, images=(ImageRows(embedding_id("dog"), 4),))
    assert (await outputs_of(engine, other, params))[-1].cached_token_count == 0
    salted = replace(PICTURE, cache_salt="mine")
    assert (await outputs_of(engine, salted, params))[-1].cached_token_count == 0
    unnamed = replace(PICTURE, images=())
    for _ in range(2):
        assert (await outputs_of(engine, unnamed, params))[-1].cached_token_count == 0


async def test_no_more_tokens_are_cached_than_the_prompt_has(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    double = importlib.import_module("tensorrt_llm.bindings.executor")
    metrics = double.KvCacheMetrics(num_reused_blocks=2)  # the second one in part
    monkeypatch.setattr(double, "KvCacheMetrics", lambda **_: metrics)
    outputs = await outputs_of(await start(), PICTURE)
    assert {output.cached_token_count for output in outputs} == {len(PICTURE.token_ids) - 1}


async def test_an_executor_that_tells_no_times_begins_at_none(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    double = importlib.import_module("tensorrt_llm.bindings.executor")
    untold = double.TimingMetrics()  # as of a request that was never scheduled
    monkeypatch.setattr(double, "TimingMetrics", lambda **_: untold)
    engine, account = await start(), Account()
    request = Request(PICTURE, SamplingParams(max_tokens=2), account=account)
    async with aclosing(engine.generate(request)) as outputs:
        assert [output async for output in outputs]
    assert account.started_at is None


async def test_reuse_can_be_turned_off(start: Start) -> None:
    engine = await start(reuse=False)
    for _ in range(2):
        assert (await outputs_of(engine, PICTURE))[-1].cached_token_count == 0


async def test_rows_that_nobody_holds_are_asked_for(start: Start) -> None:
    engine = await start()
    unheld = replace(PICTURE, images=(ImageRows(embedding_id("cat"), 4, is_held=False),))
    with pytest.raises(RowsNeededError, match="needs the rows of every image"):
        await outputs_of(engine, unheld)


@pytest.mark.parametrize(
    ("prompt", "params", "error", "message"),
    [
        (
            Prompt([1] * 301, NO_ROWS),
            SamplingParams(),
            ContextLengthError,
            "has 301 tokens, and the engine reads 300 at most. This model's maximum context length",
        ),
        (
            Prompt([1], torch.empty(257, HIDDEN_SIZE)),
            SamplingParams(),
            ContextLengthError,
            "have 257 rows, and the engine takes 256",
        ),
        (
            PROMPT,
            SamplingParams(logprob_count=1),
            UnsupportedFieldError,
            "alternatives is not supported",
        ),
        (
            PROMPT,
            SamplingParams(logprob_count=0, wants_prompt_logprobs=True),
            UnsupportedFieldError,
            "of the prompt's tokens is not supported: the tensorrt_llm engine gives those of the",
        ),
    ],
)
async def test_refuses_at_the_door(
    start: Start,
    executors: list[Any],
    prompt: Prompt,
    params: SamplingParams,
    error: type[ServiceError],
    message: str,
) -> None:
    engine = await start({"max_prompt_embedding_table_size": 4 * 256, "max_input_len": 300})
    with pytest.raises(error, match=message):
        await outputs_of(engine, prompt, params)
    assert len(executors[0].requests) == 1  # the first one, of the start
    assert engine.load().waiting_sequence_count == 0


@pytest.mark.parametrize(("option", "expected"), [(3, 3), (64, 4)])
async def test_runs_as_many_as_engine_and_settings_allow(
    start: Start, executors: list[Any], option: int, expected: int
) -> None:
    await start({"max_batch_size": 4}, max_running_sequence_count=option)
    assert executors[0].config.max_batch_size == expected


async def test_context_is_what_the_engine_was_built_for(start: Start) -> None:
    engine = await start({"max_seq_len": 20})
    assert engine.context_length == 20
    assert len(await tokens_of(engine, SamplingParams())) == 15
    assert len(await tokens_of(engine, SamplingParams(max_tokens=16))) == 15


async def test_load_is_the_executors(start: Start) -> None:
    engine = await start(kv_cache_byte_count=1024 * 256)
    assert engine.load().total_kv_token_count == engine.load().free_kv_token_count == 1024
    async with aclosing(engine.generate(Request(PROMPT, LONG))) as outputs:
        async for _ in outputs:
            if engine.load().running_sequence_count:
                break
        assert engine.load().waiting_sequence_count == 0
        assert engine.load().free_kv_token_count < 1024
    load = engine.load()
    assert (load.running_sequence_count, load.waiting_sequence_count) == (0, 0)
    assert load.free_kv_token_count == 1024


async def test_closing_the_generator_cancels_the_request(
    start: Start, executors: list[Any]
) -> None:
    engine = await start()
    async with aclosing(engine.generate(Request(PROMPT, LONG))) as outputs:
        await outputs.__anext__()
    # Submitted after the cancelling, so that it has happened once these are here.
    assert await tokens_of(engine, SamplingParams(max_tokens=8))
    assert executors[0].cancelled == [2]


async def test_a_finished_request_is_not_cancelled(start: Start, executors: list[Any]) -> None:
    engine = await start()
    for _ in range(2):
        await outputs_of(engine)
    assert executors[0].cancelled == []


async def test_a_waiting_request_can_be_cancelled(start: Start, executors: list[Any]) -> None:
    engine = await start(max_running_sequence_count=1)
    executors[0].close_gate()
    running = asyncio.ensure_future(outputs_of(engine))
    waiting = asyncio.ensure_future(outputs_of(engine, params=LONG))
    await asyncio.sleep(0)  # lets the tasks post their requests
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    executors[0].gate.set()
    assert sum(len(output.token_ids) for output in await running) == 8
    assert engine.load().waiting_sequence_count == 0


async def test_choices_of_a_request_take_turns_with_others(
    start: Start, executors: list[Any]
) -> None:
    engine = await start(max_running_sequence_count=2)
    executors[0].close_gate()
    several = Request(PROMPT, SamplingParams(max_tokens=8))

    async def choice(request: Request) -> int:
        async with aclosing(engine.generate(request)) as outputs:
            return sum([len(output.token_ids) async for output in outputs])

    # Four choices of one request, then two of another: client ids 1 to 4, and 5 and 6.
    tasks = [asyncio.ensure_future(choice(several)) for _ in range(4)]
    await asyncio.sleep(0)
    other = replace(several, account=Account())
    tasks += [asyncio.ensure_future(choice(other)) for _ in range(2)]

    async def running_next() -> int:
        assert await asyncio.to_thread(executors[0].at_gate.acquire, timeout=30)
        return int(executors[0].requests[-1].client_id)

    assert {await running_next(), await running_next()} <= {1, 2}
    assert engine.load().waiting_sequence_count >= 4
    # Each place that comes back goes to whose request has none running, then to the oldest.
    for ended, begun in ((1, 5), (2, 3), (5, 6), (3, 4)):
        tasks[ended - 1].cancel()
        assert await running_next() == begun
    executors[0].gate.set()
    assert [await tasks[3], await tasks[5]] == [8, 8]


async def test_a_request_is_over_in_time_while_it_waits_for_its_turn(
    start: Start, executors: list[Any]
) -> None:
    engine = await start(max_running_sequence_count=1)
    executors[0].close_gate()
    running = asyncio.ensure_future(outputs_of(engine))
    await asyncio.sleep(0)
    with pytest.raises(DeadlineError):
        await outputs_of(engine, deadline=time.monotonic() + 0.1)
    executors[0].gate.set()
    assert sum(len(output.token_ids) for output in await running) == 8
    assert len(await outputs_of(engine))


async def test_an_error_response_fails_its_request_alone(
    start: Start, executors: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start()
    monkeypatch.setattr(executors[0], "limits", replace(executors[0].limits, max_input_length=4))
    with pytest.raises(ServiceError, match=r"Prompt length \(5\) exceeds") as caught:
        await outputs_of(engine)
    assert type(caught.value) is ServiceError
    monkeypatch.undo()
    assert engine.is_healthy()
    assert await tokens_of(engine, SamplingParams(max_tokens=3), Prompt([3, 1], NO_ROWS))


async def test_a_request_that_cannot_be_made_leaves_nothing_behind(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start()

    def no_room(*_: object) -> None:
        raise OverloadedError("no memory left")

    monkeypatch.setattr("llm_service.engines.tensorrt_llm.requests.RequestFactory.request", no_room)
    with pytest.raises(OverloadedError, match="no memory left"):
        await outputs_of(engine, PICTURE)
    assert engine.is_healthy()
    assert engine.load().waiting_sequence_count == 0


async def _running(engine: LLMEngine, executor: Any) -> list[asyncio.Future[Any]]:
    """Returns requests that wait at the executor's gate."""
    executor.close_gate()
    requests: list[asyncio.Future[Any]] = []
    requests += (asyncio.ensure_future(outputs_of(engine)) for _ in range(3))
    for _ in requests:
        assert await asyncio.to_thread(executor.at_gate.acquire, timeout=30)
    return requests


async def test_a_step_that_fails_costs_the_active_requests_alone(
    start: Start, executors: list[Any]
) -> None:
    engine = await start()
    requests = await _running(engine, executors[0])
    executors[0].fail_steps(1)
    failures = await asyncio.gather(*requests, return_exceptions=True)
    assert [type(failure) for failure in failures] == [ServiceError] * 3
    assert "an illegal memory access" in str(failures[0])
    executors[0].gate.set()
    assert sum(len(output.token_ids) for output in await outputs_of(engine)) == 8
    assert engine.is_healthy()
    assert [request.client_id for request in executors[0].requests].count(0) == 2  # with the first


async def test_log_probabilities_that_are_no_numbers_end_their_request(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start()
    spoil_log_probs(monkeypatch)
    params = SamplingParams(max_tokens=8, logprob_count=0)
    with pytest.raises(NonFiniteError, match="not finite in float32"):
        await outputs_of(engine, params=params)
    assert sum(len(output.token_ids) for output in await outputs_of(engine)) == 8


async def test_a_probe_that_cannot_be_made_ends_the_engine(
    start: Start, executors: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start()
    responses = _responses_thread()
    requests = await _running(engine, executors[0])

    def no_room(*_: object) -> None:
        raise OverloadedError("no memory left")

    monkeypatch.setattr("llm_service.engines.tensorrt_llm.requests.RequestFactory.request", no_room)
    executors[0].fail_steps(1)
    await asyncio.gather(*requests, return_exceptions=True)
    await asyncio.to_thread(responses.join, 30)
    assert not engine.is_healthy()


async def test_steps_that_fail_again_and_again_end_the_engine(
    start: Start, executors: list[Any]
) -> None:
    engine = await start()
    responses = _responses_thread()
    requests = await _running(engine, executors[0])
    executors[0].fail_steps(100)
    failures = await asyncio.gather(*requests, return_exceptions=True)
    assert [type(failure) for failure in failures] == [ServiceError] * 3
    await asyncio.to_thread(responses.join, 30)
    assert not engine.is_healthy()
    with pytest.raises(EngineDeadError):
        await outputs_of(engine)


def _responses_thread() -> threading.Thread:
    (thread,) = (item for item in threading.enumerate() if item.name == "tensorrt-llm-responses")
    return thread


async def test_an_executor_that_takes_no_request_is_dead(
    start: Start, executors: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start()
    responses = _responses_thread()

    def refuse(_: Any) -> int:
        raise RuntimeError("Shutdown called, cannot enqueue requests")

    monkeypatch.setattr(executors[0], "enqueue_request", refuse)
    with pytest.raises(EngineDeadError):
        await outputs_of(engine)
    await asyncio.to_thread(responses.join, 30)
    assert not engine.is_healthy()


async def test_close_cancels_what_runs(start: Start, executors: list[Any]) -> None:
    engine = await start()
    executors[0].close_gate()
    running = asyncio.ensure_future(outputs_of(engine, params=LONG))
    assert await asyncio.to_thread(executors[0].at_gate.acquire, timeout=30)
    await engine.close()
    with pytest.raises(EngineDeadError):
        await running
    assert executors[0].cancelled == [2]
    assert not executors[0].can_enqueue_requests()
