"""The golden conversations as an engine's prompts, and what an engine says after one."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import ImageRows, LLMEngine, Prompt, Request
from llm_service.sampling import SamplingParams
from llm_service.tokenizer import IMAGE_CONTEXT, Tokenizer
from tests.embedding_ids import embedding_id
from tests.parity import golden


@dataclass(frozen=True)
class Conversation:
    """One conversation of golden.json."""

    name: str
    prompt: Prompt
    greedy_token_ids: list[int]


def golden_conversations(checkpoint_dir: Path) -> list[Conversation]:
    """Returns a checkpoint's conversations, with context tokens replaced by virtual tokens.

    Skips the test when the golden data lacks something that all of them need.
    """
    golden.need_weights(checkpoint_dir)
    golden.need_tokenizer(checkpoint_dir)
    documents = golden.read_json(checkpoint_dir / "golden.json")["conversations"]
    tensors = golden.read_tensors(checkpoint_dir / "golden.safetensors")
    config = LLMConfig.from_checkpoint(checkpoint_dir)
    context_id = Tokenizer.from_checkpoint(checkpoint_dir).special_id(IMAGE_CONTEXT)
    found = []
    for document in documents:
        if any(f"embeds.{name}" not in tensors for name in document["images"]):
            continue
        ids = golden.decode_run_lengths(document["input_ids_rle"])
        virtual_ids = count(config.vocabulary_size)
        token_ids = [next(virtual_ids) if item == context_id else item for item in ids]
        rows = [tensors[f"embeds.{name}"].flatten(0, 1) for name in document["images"]]
        table = torch.cat([torch.empty(0, config.hidden_size), *rows])
        images = [
            ImageRows(embedding_id(name), len(row))
            for name, row in zip(document["images"], rows, strict=True)
        ]
        prompt = Prompt(token_ids, table, tuple(images))
        found.append(Conversation(document["name"], prompt, document["greedy_16"]))
    if not found:
        pytest.skip("the golden data has no embeddings for any conversation")
    return found


async def greedy_tokens(engine: LLMEngine, conversation: Conversation) -> list[int]:
    """Returns as many tokens as the reference has."""
    params = SamplingParams(max_tokens=len(conversation.greedy_token_ids))
    async with aclosing(engine.generate(Request(conversation.prompt, params))) as outputs:
        return [token_id async for output in outputs for token_id in output.token_ids]
