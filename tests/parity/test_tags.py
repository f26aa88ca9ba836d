"""A grounding question's tokens, and what the model answers, equal to the reference's."""

from __future__ import annotations

from pathlib import Path

import torch

from llm_service.checkpoint import LLMConfig
from llm_service.conversation import Message, Role
from llm_service.engines.base import ImageRows, Prompt
from llm_service.engines.create import create_engine
from llm_service.pieces import ImagePart
from llm_service.prompt import chat_layout
from llm_service.settings import Settings, TorchOptions
from llm_service.templates import read_template
from llm_service.tokenizer import Tokenizer
from tests.embedding_ids import embedding_id
from tests.parity import golden
from tests.parity.conversations import Conversation, greedy_tokens

CHECKPOINT = Path(__file__).parents[1] / "data" / "golden" / "tiny-qwen2"
# OpenGVLab's chat() on this checkpoint and image_a, with the slow tokenizer; no end token counts.
QUESTION = "where is <ref>the bird</ref>?"
TOKEN_COUNT = 465
ANSWER = [20, 215, 257, 50, 30, 62, 55, 115, 56, 244, 72, 197]


async def test_a_grounding_question_is_the_references() -> None:
    config = LLMConfig.from_checkpoint(CHECKPOINT)
    tokenizer = Tokenizer.from_checkpoint(CHECKPOINT)
    tensors = golden.read_tensors(CHECKPOINT / "golden.safetensors")
    table = tensors["embeds.image_a"].flatten(0, 1)
    messages = [Message(Role.USER, (ImagePart(), QUESTION))]
    layout = chat_layout(tokenizer, read_template(CHECKPOINT), messages)
    token_ids = layout.token_ids([len(table)], config.vocabulary_size)
    assert len(token_ids) == TOKEN_COUNT
    options = TorchOptions(device="cpu", dtype="float32", thread_count=torch.get_num_threads())
    settings = Settings(checkpoint=CHECKPOINT, torch=options, kv_cache_byte_count=1 << 24)
    engine = create_engine(settings, config, tokenizer)
    prompt = Prompt(token_ids, table, (ImageRows(embedding_id("a"), len(table)),))
    try:
        assert await greedy_tokens(engine, Conversation("tags", prompt, ANSWER)) == ANSWER
    finally:
        await engine.close()
