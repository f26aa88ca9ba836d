"""The stream of the decoder's steps."""

from __future__ import annotations

import asyncio
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import Prompt, Request
from llm_service.engines.create import create_engine
from llm_service.engines.torch.engine import TorchEngine
from llm_service.engines.torch.streams import engine_stream
from llm_service.sampling import SamplingParams
from llm_service.settings import Settings
from tests.unit.llm_service.engines.torch.tiny import (
    QWEN2,
    random_tensors,
    tiny_tokenizer,
    write_checkpoint,
)


def test_a_cpu_has_none() -> None:
    assert engine_stream(torch.device("cpu")) is None


@pytest.mark.gpu
async def test_steps_go_before_other_work_of_their_process(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, QWEN2, random_tensors(QWEN2))
    settings = Settings.model_validate(
        {"checkpoint": tmp_path, "torch": {"device": "cuda"}, "kv_cache_byte_count": 1 << 24}
    )
    config = await asyncio.to_thread(LLMConfig.from_checkpoint, tmp_path)
    engine = await asyncio.to_thread(create_engine, settings, config, tiny_tokenizer())
    assert isinstance(engine, TorchEngine)
    seen: SimpleQueue[torch.cuda.Stream] = SimpleQueue()
    engine._inbox.put(lambda: seen.put(torch.cuda.current_stream()))
    request = Request(Prompt([1, 2, 3], torch.empty(0, 32)), SamplingParams(max_tokens=5))
    tokens = [token async for output in engine.generate(request) for token in output.token_ids]
    assert len(tokens) == 5
    stream = await asyncio.to_thread(seen.get)
    assert stream.priority < torch.cuda.default_stream().priority
    assert stream == engine._runner.stream
    await engine.close()
