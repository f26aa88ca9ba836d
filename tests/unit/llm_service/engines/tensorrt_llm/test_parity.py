"""Greedy tokens of the golden conversations through the executor, equal to the reference's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import LLMEngine
from llm_service.engines.create import create_engine
from llm_service.settings import Settings, TensorRTLLMOptions
from llm_service.tokenizer import Tokenizer
from tests.parity import golden
from tests.parity.conversations import Conversation, golden_conversations, greedy_tokens
from tests.unit.llm_service.engines.tensorrt_llm.engine_folders import (
    engine_document,
    write_engine_folder,
)


@pytest.fixture(params=["tiny-qwen2", "tiny-internlm2"])
def checkpoint(request: pytest.FixtureRequest, golden_dir: Path) -> Path:
    folder: Path = golden_dir / request.param
    golden.need_weights(folder)
    return folder


@pytest.fixture
def conversations(checkpoint: Path) -> list[Conversation]:
    return golden_conversations(checkpoint)


@pytest.fixture
async def engine(checkpoint: Path, tmp_path: Path) -> AsyncGenerator[LLMEngine, None]:
    config = LLMConfig.from_checkpoint(checkpoint)
    folder = write_engine_folder(tmp_path, engine_document(config), checkpoint)
    options = TensorRTLLMOptions(engine_folder=folder, max_request_tile_count=12)
    settings = Settings(checkpoint=checkpoint, engine="tensorrt_llm", tensorrt_llm=options)
    created = create_engine(settings, config, Tokenizer.from_checkpoint(checkpoint))
    yield created
    await created.close()


async def test_greedy_tokens_equal_the_reference(
    engine: LLMEngine, conversations: list[Conversation]
) -> None:
    assert any(conversation.prompt.images for conversation in conversations)
    for conversation in conversations:
        assert await greedy_tokens(engine, conversation) == conversation.greedy_token_ids


async def test_greedy_tokens_together_and_from_the_cache(
    engine: LLMEngine, conversations: list[Conversation]
) -> None:
    together = conversations * 2
    tokens = await asyncio.gather(*(greedy_tokens(engine, item) for item in together))
    assert list(tokens) == [item.greedy_token_ids for item in together]
