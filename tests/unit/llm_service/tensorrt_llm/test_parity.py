"""Greedy tokens of the golden conversations through the executor, equal to the reference's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines import ImageRows, LLMEngine, Prompt, create_engine
from llm_service.sampling import SamplingParams
from llm_service.settings import Settings
from llm_service.tokenizer import IMAGE_CONTEXT, Tokenizer
from tests.parity import golden
from tests.unit.llm_service.tensorrt_llm.engine_folders import engine_document, write_engine_folder


@dataclass(frozen=True)
class Conversation:
    """A prompt of golden.json and the reference's first 16 tokens."""

    prompt: Prompt
    greedy_token_ids: list[int]


@pytest.fixture(params=["tiny-qwen2", "tiny-internlm2"])
def checkpoint(request: pytest.FixtureRequest, golden_dir: Path) -> Path:
    folder: Path = golden_dir / request.param
    golden.need_weights(folder)
    return folder


@pytest.fixture
def conversations(checkpoint: Path) -> list[Conversation]:
    tensors = golden.read_tensors(checkpoint / "golden.safetensors")
    config = LLMConfig.from_checkpoint(checkpoint)
    context_id = Tokenizer.from_checkpoint(checkpoint).special_id(IMAGE_CONTEXT)
    found = []
    for document in golden.read_json(checkpoint / "golden.json")["conversations"]:
        virtual_ids = count(config.vocabulary_size)
        ids = golden.decode_run_lengths(document["input_ids_rle"])
        token_ids = [next(virtual_ids) if i == context_id else i for i in ids]
        rows = {name: tensors[f"embeds.{name}"].flatten(0, 1) for name in document["images"]}
        table = torch.cat([torch.empty(0, config.hidden_size), *rows.values()])
        images = tuple(ImageRows(name.encode(), len(row)) for name, row in rows.items())
        found.append(Conversation(Prompt(token_ids, table, images), document["greedy_16"]))
    return found


@pytest.fixture
async def engine(checkpoint: Path, tmp_path: Path) -> AsyncGenerator[LLMEngine, None]:
    config = LLMConfig.from_checkpoint(checkpoint)
    folder = write_engine_folder(tmp_path, engine_document(config), checkpoint)
    settings = Settings(
        checkpoint=checkpoint, engine="tensorrt_llm", engine_folder=folder, max_tiles_per_request=12
    )
    created = create_engine(settings, config, Tokenizer.from_checkpoint(checkpoint))
    yield created
    await created.close()


async def _greedy(engine: LLMEngine, conversation: Conversation) -> list[int]:
    params = SamplingParams(max_tokens=len(conversation.greedy_token_ids))
    async with aclosing(engine.generate(conversation.prompt, params)) as outputs:
        return [token_id async for output in outputs for token_id in output.token_ids]


async def test_greedy_tokens_equal_the_reference(
    engine: LLMEngine, conversations: list[Conversation]
) -> None:
    assert any(conversation.prompt.images for conversation in conversations)
    for conversation in conversations:
        assert await _greedy(engine, conversation) == conversation.greedy_token_ids


async def test_greedy_tokens_together_and_from_the_cache(
    engine: LLMEngine, conversations: list[Conversation]
) -> None:
    together = conversations * 2
    tokens = await asyncio.gather(*(_greedy(engine, item) for item in together))
    assert list(tokens) == [item.greedy_token_ids for item in together]
