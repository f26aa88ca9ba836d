"""What an engine at the other end of a link promises beside what every engine does."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import ImageRows, Prompt, Request
from llm_service.engines.create import create_engine
from llm_service.engines.torch.engine import TorchEngine
from llm_service.sampling import Guide, SamplingParams
from llm_service.settings import Settings, TorchOptions
from protos.identity import EmbeddingId
from tests.known_callers import until
from tests.threaded_host import ThreadedEngine
from tests.unit.llm_service.engines.torch.answers import HIDDEN_SIZE, LONG, PROMPT, tokens_of
from tests.unit.llm_service.engines.torch.gate import PATIENCE_SECONDS, Gate
from tests.unit.llm_service.engines.torch.tiny import (
    QWEN2,
    random_tensors,
    tiny_tokenizer,
    write_checkpoint,
)

IMAGE = ImageRows(EmbeddingId(b"a" * 32, b"b" * 32), 2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), QWEN2, random_tensors(QWEN2))


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


@pytest.fixture
def torch_engine(checkpoint: Path, gate: Gate) -> TorchEngine:
    settings = Settings(
        checkpoint=checkpoint,
        torch=TorchOptions(device="cpu", dtype="float32", thread_count=1),
        kv_cache_byte_count=1 << 22,
    )
    config = LLMConfig.from_checkpoint(checkpoint)
    engine = create_engine(settings, config, tiny_tokenizer())
    assert isinstance(engine, TorchEngine)
    return engine


@pytest.fixture
async def engine(torch_engine: TorchEngine, gate: Gate) -> AsyncIterator[ThreadedEngine]:
    threaded = ThreadedEngine(torch_engine)
    yield threaded
    gate.open()
    await threaded.close()


def prompt_in(engine: ThreadedEngine) -> Prompt:
    """Returns a prompt whose table is in the arena."""
    table = engine.arena.new_table([2, HIDDEN_SIZE], torch.float32)
    table.copy_(torch.randn(2, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1)))
    return Prompt([3, 61, 62, 5], table, (IMAGE,))


async def test_a_step_wakes_nobody_in_the_engines_process(
    engine: ThreadedEngine, torch_engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's thread writes: the event loop beside it has nothing to do with tokens."""
    await tokens_of(engine, SamplingParams(max_tokens=1))
    async with aclosing(engine.generate(Request(PROMPT, LONG))) as outputs:
        await anext(outputs)
        wake = Mock(wraps=engine.host._loop.call_soon_threadsafe)
        monkeypatch.setattr(engine.host._loop, "call_soon_threadsafe", wake)
        for _ in range(100):
            await anext(outputs)
        assert not wake.called


async def test_all_of_a_steps_outputs_are_one_frame(
    engine: ThreadedEngine, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Mock(wraps=engine._take)
    monkeypatch.setattr(engine, "_take", take)
    gate.close()
    answers = [
        asyncio.ensure_future(tokens_of(engine, SamplingParams(max_tokens=20))) for _ in range(4)
    ]
    await asyncio.to_thread(gate.entered.wait, PATIENCE_SECONDS)
    await asyncio.sleep(0.05)
    gate.open()
    await asyncio.gather(*answers)
    counts = [len(step.outputs) for (step,), _ in take.call_args_list]
    assert sum(counts) == 80
    assert counts.count(4) >= 15


async def test_leaving_frees_the_sequence_within_a_step(engine: ThreadedEngine, gate: Gate) -> None:
    async with aclosing(engine.generate(Request(PROMPT, LONG))) as outputs:
        await anext(outputs)
        gate.close()
    await engine.check_guide(Guide("regex", "a"))  # the host has had the message before this one
    step_count = len(gate.batches)
    gate.permit(2)
    await until(lambda: engine.load().running_sequence_count == 0, PATIENCE_SECONDS)
    assert len(gate.batches) <= step_count + 2


async def test_a_tables_part_stays_while_the_engine_reads_it(
    engine: ThreadedEngine, torch_engine: TorchEngine, gate: Gate
) -> None:
    gate.close()
    prompt = prompt_in(engine)
    offset = engine.arena.offset(prompt.prompt_table)
    answer = asyncio.ensure_future(tokens_of(engine, LONG, prompt))
    await asyncio.to_thread(gate.entered.wait, PATIENCE_SECONDS)
    answer.cancel()
    await asyncio.wait([answer])
    del prompt, answer
    gc.collect()
    # Nobody here has the table any more, but the step that reads it has not run.
    later = engine.arena.new_table([2, HIDDEN_SIZE], torch.float32)
    assert engine.arena.offset(later) != offset
    gate.batches.clear()
    gate.open()
    await tokens_of(engine, SamplingParams(max_tokens=1))
    gate.batches.clear()
    await until(lambda: (gc.collect(), not engine._tables)[1], PATIENCE_SECONDS)
    assert engine.arena.offset(engine.arena.new_table([2, HIDDEN_SIZE], torch.float32)) == offset


async def test_a_table_in_the_arena_gives_the_tokens_of_one_elsewhere(
    engine: ThreadedEngine,
) -> None:
    prompt = prompt_in(engine)
    elsewhere = Prompt(prompt.token_ids, prompt.prompt_table.clone(), cache_salt="another")
    params = SamplingParams(max_tokens=12)
    assert await tokens_of(engine, params, prompt) == await tokens_of(engine, params, elsewhere)


async def test_a_request_that_cannot_be_sent_holds_up_no_other(
    engine: ThreadedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = SamplingParams(max_tokens=1)
    refusal = Mock(side_effect=OSError("no descriptors are left"))
    for _ in range(20):
        with monkeypatch.context() as patch:
            patch.setattr("llm_service.engines.process.engine.table_message", refusal)
            with pytest.raises(OSError, match="no descriptors"):
                await tokens_of(engine, one)
        assert len(await asyncio.wait_for(tokens_of(engine, one), PATIENCE_SECONDS)) == 1


async def test_a_bug_in_the_engines_process_fails_the_request_alone(
    engine: ThreadedEngine, torch_engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch_engine, "_sequence", None)
        with pytest.raises(Exception, match="the request has failed in the engine's process"):
            await tokens_of(engine, LONG)
    assert len(await tokens_of(engine, SamplingParams(max_tokens=3))) == 3
