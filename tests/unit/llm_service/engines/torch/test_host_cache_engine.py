"""An engine with a host cache answers as one that computes everything, and knows what it kept."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import EngineStartError, ImageRows, LLMEngine, Prompt, TokenOutput
from llm_service.engines.create import create_engine
from llm_service.engines.torch import host_memory, launch
from llm_service.engines.torch.block_copies import BlockCopies
from llm_service.sampling import SamplingParams
from llm_service.settings import Settings, TorchOptions
from protos.process.memory import FreeMemory
from tests.embedding_ids import embedding_id
from tests.unit.llm_service.engines.torch.answers import HIDDEN_SIZE, NO_ROWS, outputs_of
from tests.unit.llm_service.engines.torch.tiny import (
    QWEN2,
    random_tensors,
    tiny_tokenizer,
    write_checkpoint,
)

BLOCK_SIZE = 4
# In float32: two layers, keys and values, two heads of 8.
BLOCK_BYTE_COUNT = 2 * 2 * BLOCK_SIZE * 2 * 8 * 4
PARAMS = SamplingParams(max_tokens=6, logprob_count=3)
ROWS = 5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), QWEN2, random_tensors(QWEN2))


@pytest.fixture
def beside_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a CPU have a host cache, in ordinary memory; what is saved is spoilt where it was."""
    save = BlockCopies.save

    def save_and_spoil(copies: BlockCopies, blocks: Sequence[int], slots: Sequence[int]) -> None:
        save(copies, blocks, slots)
        copies._blocks[list(blocks)] = -1  # as words: all bits, which is NaN

    monkeypatch.setattr(launch, "check_host_cache", lambda *_: None)
    monkeypatch.setattr(launch, "page_locked", lambda count: torch.empty(count, dtype=torch.uint8))
    monkeypatch.setattr(BlockCopies, "save", save_and_spoil)


def _settings(checkpoint: Path, block_count: int, slot_count: int) -> Settings:
    options = TorchOptions(
        device="cpu",
        dtype="float32",
        thread_count=1,
        block_size=BLOCK_SIZE,
        host_cache_byte_count=slot_count * BLOCK_BYTE_COUNT,
    )
    return Settings(
        checkpoint=checkpoint, torch=options, kv_cache_byte_count=block_count * BLOCK_BYTE_COUNT
    )


def _start(settings: Settings) -> LLMEngine:
    config = LLMConfig.from_checkpoint(settings.checkpoint)
    return create_engine(settings, config, tiny_tokenizer())


def _prompts(count: int) -> list[Prompt]:
    """Returns turns of conversations, half of them about pictures, in any order."""
    chance = random.Random(0)
    tables = [torch.randn(ROWS, HIDDEN_SIZE) for _ in range(2)]
    conversations = [[chance.randrange(50) for _ in range(7)] for _ in range(4)]
    prompts = []
    for _ in range(count):
        index = chance.randrange(4)
        conversations[index] += [chance.randrange(50) for _ in range(chance.randint(1, 6))]
        token_ids = conversations[index]
        if index < 2:
            rows = range(QWEN2["vocab_size"], QWEN2["vocab_size"] + ROWS)
            image = ImageRows(embedding_id(str(index)), ROWS)
            prompts.append(Prompt([3, *rows, *token_ids], tables[index], (image,)))
        else:
            prompts.append(Prompt(list(token_ids), NO_ROWS, cache_salt=str(index)))
    return prompts


def _close_to(expected: list[TokenOutput]) -> list[object]:
    return [(ids, pytest.approx(best, abs=1e-5)) for ids, best in _told(expected)]


def _told(outputs: list[TokenOutput]) -> list[tuple[int, list[float]]]:
    scores = [score for output in outputs for score in output.logprobs]
    return [(score.token_id, [top for _, top in score.top]) for score in scores]


@pytest.mark.usefixtures("beside_a_cpu")
async def test_answers_are_those_of_recomputation(checkpoint: Path) -> None:
    prompts = _prompts(36)
    computing, caching = [
        await asyncio.to_thread(_start, _settings(checkpoint, *counts))
        for counts in ((400, 0), (24, 50))
    ]
    try:
        for first in range(0, len(prompts), 3):  # three side by side preempt one another
            together = prompts[first : first + 3]
            expected = [await outputs_of(computing, prompt, PARAMS) for prompt in together]
            answers = await asyncio.gather(
                *(outputs_of(caching, prompt, PARAMS) for prompt in together)
            )
            for answer, wanted in zip(answers, expected, strict=True):
                assert _told(answer) == _close_to(wanted)
        load = caching.load().host_cache
        assert load is not None
        assert load.loaded_token_count > 100
        assert load.used_token_count == load.total_token_count == 50 * BLOCK_SIZE
        assert load.evicted_token_count > 0
        assert computing.load().host_cache is None
    finally:
        for engine in (computing, caching):
            await engine.close()


@pytest.mark.usefixtures("beside_a_cpu")
def test_a_host_cache_without_room_for_a_block_is_refused(checkpoint: Path) -> None:
    settings = _settings(checkpoint, 10, 1)
    options = settings.torch.model_copy(update={"host_cache_byte_count": BLOCK_BYTE_COUNT - 1})
    with pytest.raises(
        EngineStartError, match="the host cache has 1023 bytes, and one block needs"
    ):
        _start(settings.model_copy(update={"torch": options}))


def test_a_cpu_has_no_use_for_it(checkpoint: Path) -> None:
    with pytest.raises(
        EngineStartError, match="host_cache_byte_count is 1024, but on a CPU the KV"
    ):
        _start(_settings(checkpoint, 10, 1))


def test_more_than_the_machine_has_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = FreeMemory(2**30, "are free here")
    monkeypatch.setattr(host_memory, "free_host_memory", lambda: free)
    cuda = torch.device("cuda")
    host_memory.check_host_cache(TorchOptions(host_cache_byte_count=2**30), cuda)
    sentence = (
        "there is too little memory: the host cache takes 2.0 GiB; 1.0 GiB are free here. What"
        " helps: --torch.host-cache-byte-count of less than 1073741824"
    )
    with pytest.raises(EngineStartError) as caught:
        host_memory.check_host_cache(TorchOptions(host_cache_byte_count=2**31), cuda)
    assert str(caught.value) == sentence


def test_memory_that_the_system_does_not_give_is_refused_by_its_own_option() -> None:
    with pytest.raises(EngineStartError, match="cannot be had .* smaller --torch.host-cache-byte"):
        host_memory.page_locked(2**60)
