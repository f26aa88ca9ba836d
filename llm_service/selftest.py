"""The self-test of an engine: whether its tokens follow from the checkpoint as the torch engine's.

`python -m llm_service.selftest` takes the LLM service's options. The torch engine answers a few
prompts; then the engine that the options name is asked for each token of these answers anew, after
the same tokens before it, so that one difference does not make all that follow differ. Types round
differently: a token that the torch engine held almost as probable as its own agrees, too.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from llm_service.checkpoint import CheckpointError, LLMConfig
from llm_service.engines import ImageRows, LLMEngine, Prompt, TokenLogprob, create_engine
from llm_service.prompt import Message, Role, chat_layout
from llm_service.sampling import MAX_LOGPROB_COUNT, SamplingParams
from llm_service.settings import Settings
from llm_service.tokenizer import Tokenizer, TokenizerError
from protos import logs
from protos.serving import read_settings

QUESTIONS = (
    Message(Role.USER, "Write a short story about a lighthouse."),
    Message(Role.USER, "请用三句话介绍一下长城。"),
    Message(Role.USER, "What do you see in the picture?", image_count=1),
    Message(Role.USER, "Image-1: <image>\nImage-2: <image>\nCompare the two.", image_count=2),
)
ROWS_PER_TILE = 256


class SelftestSettings(Settings):
    """Options of the LLM service, and the self-test's own."""

    model_config = SettingsConfigDict(cli_prog_name="python -m llm_service.selftest")

    reference_device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the torch engine runs that the other is compared with."""
    answer_token_count: int = Field(default=32, ge=1)
    """Tokens of each answer that are compared."""
    tolerance: float = Field(default=0.3, ge=0)
    """How much less the log probability of a token may be than that of the reference's."""
    least_agreement: float = Field(default=0.98, ge=0, le=1)
    """Share of the tokens that must agree."""

    @property
    def reference(self) -> Settings:
        """The options of the torch engine."""
        return self.model_copy(update={"engine": "torch", "device": self.reference_device})


@dataclass(frozen=True)
class Answer:
    """What an engine wrote after a prompt, greedily.

    Attributes:
        token_ids: the tokens.
        logprobs: one for each token if they were asked for, with the most probable alternatives.
        first_token_seconds: from the request to the first token.
        total_seconds: from the request to the last token.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprob]
    first_token_seconds: float
    total_seconds: float


def main() -> None:
    """Compares, and says what came out; exit status 1 when the engine fails or cannot start."""
    settings = read_settings(SelftestSettings)
    logs.configure("warning", settings.log_format)
    try:
        agreement = asyncio.run(compare(settings))
    except (CheckpointError, TokenizerError, ValueError, OSError) as error:
        sys.exit(str(error))
    if agreement < settings.least_agreement:
        sys.exit(f"FAILED: {agreement:.1%} is less than --least-agreement")
    sys.stdout.write("passed\n")


async def compare(settings: SelftestSettings) -> float:
    """Returns the share of the torch engine's tokens that the settings' engine agrees with.

    Raises:
        CheckpointError, TokenizerError: the checkpoint is not one that we serve.
        ValueError: this machine does not allow a setting.
    """
    config = LLMConfig.from_checkpoint(settings.checkpoint)
    tokenizer = Tokenizer.from_checkpoint(settings.checkpoint)
    prompts = [make_prompt(question, config, tokenizer) for question in QUESTIONS]
    greedy = SamplingParams(max_tokens=settings.answer_token_count)
    engine = create_engine(settings.reference, config, tokenizer)
    scored = replace(greedy, logprob_count=MAX_LOGPROB_COUNT)
    expected = [await answer(engine, prompt, scored) for prompt in prompts]
    await engine.close()
    # The other engine does not take its memory from PyTorch.
    del engine
    gc.collect()
    torch.cuda.empty_cache()
    engine = create_engine(settings, config, tokenizer)
    _report(settings.engine, [await answer(engine, prompt, greedy) for prompt in prompts])
    agreed = [
        token
        for prompt, reference in zip(prompts, expected, strict=True)
        for token in await agreements(engine, prompt, reference, settings.tolerance)
    ]
    await engine.close()
    sys.stdout.write(f"{sum(agreed)} of {len(agreed)} tokens agree with the torch engine's\n")
    return sum(agreed) / len(agreed)


def make_prompt(question: Message, config: LLMConfig, tokenizer: Tokenizer) -> Prompt:
    """Returns a question as a prompt; its images are one tile each, of noise that is always the same."""
    row_counts = [ROWS_PER_TILE] * question.image_count
    token_ids = chat_layout(tokenizer, [question]).token_ids(row_counts, config.vocabulary_size)
    noise = torch.Generator().manual_seed(question.image_count)
    table = torch.randn(sum(row_counts), config.hidden_size, generator=noise)
    images = [ImageRows(b"%d" % index, ROWS_PER_TILE) for index in range(question.image_count)]
    return Prompt(token_ids, table, tuple(images))
