"""Prompts for the models of tiny.py, and what an engine answers to them."""

from __future__ import annotations

from contextlib import aclosing

import torch

from llm_service.engines.base import LLMEngine, Prompt, Request, TokenOutput
from llm_service.sampling import SamplingParams
from tests.unit.llm_service.engines.torch.tiny import QWEN2

HIDDEN_SIZE, CONTEXT = QWEN2["hidden_size"], QWEN2["max_position_embeddings"]
NO_ROWS = torch.empty(0, HIDDEN_SIZE)
PROMPT = Prompt([3, 1, 4, 1, 5], NO_ROWS)
LONG = SamplingParams(max_tokens=500)
ENDS = frozenset({54, 60})  # of tiny.py's tokenizer and models


async def outputs_of(
    engine: LLMEngine,
    prompt: Prompt = PROMPT,
    params: SamplingParams | None = None,
    deadline: float | None = None,
) -> list[TokenOutput]:
    """Returns all that the engine yields; without params, up to 8 tokens."""
    request = Request(prompt, params or SamplingParams(max_tokens=8), deadline=deadline)
    async with aclosing(engine.generate(request)) as outputs:
        return [output async for output in outputs]


async def tokens_of(
    engine: LLMEngine, params: SamplingParams, prompt: Prompt = PROMPT
) -> list[int]:
    """Returns the tokens; the last output, and no other, has a reason why they end."""
    outputs = await outputs_of(engine, prompt, params)
    *others, last = (output.finish_reason is not None for output in outputs)
    assert last
    assert not any(others)
    return [token_id for output in outputs for token_id in output.token_ids]
