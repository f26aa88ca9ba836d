"""The self-test of an engine: whether its tokens follow from the checkpoint as the torch engine's.

`python -m llm_service.selftest` takes the LLM service's options, and mpirun where the service does.
The torch engine answers a few prompts; then the engine that the options name is asked for each
token of these answers anew, after the same tokens before it, so that one difference does not make
all that follow differ. Types round differently: a token that the torch engine held almost as
probable as its own agrees, too.
"""

from __future__ import annotations

import asyncio
import gc
import math
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from llm_service.checkpoint import LLMConfig
from llm_service.conversation import Message, Role
from llm_service.engines.base import (
    EngineStartError,
    ImageRows,
    LLMEngine,
    Prompt,
    Request,
    TokenLogprob,
)
from llm_service.engines.create import create_engine, serves_callers
from llm_service.model import read_model
from llm_service.pieces import ImagePart
from llm_service.prompt import chat_layout
from llm_service.sampling import MAX_LOGPROB_COUNT, SamplingParams
from llm_service.settings import Settings
from llm_service.templates import Template
from llm_service.tokenizer import Tokenizer
from protos.checkpoint.section import CheckpointError
from protos.errors import ServiceError
from protos.identity import EmbeddingId, content_digest
from protos.process import logs
from protos.process.settings import read_settings

QUESTIONS = (
    Message(Role.USER, ("Write a short story about a lighthouse.",)),
    Message(Role.USER, ("请用三句话介绍一下长城。",)),
    Message(Role.USER, (ImagePart(), "What do you see in the picture?")),
    Message(
        Role.USER,
        (*[ImagePart()] * 2, "Image-1: <image>\nImage-2: <image>\nCompare the two."),
    ),
)


class SelftestSettings(Settings):
    """Options of the LLM service, and the self-test's own."""

    model_config = SettingsConfigDict(cli_prog_name="python -m llm_service.selftest")

    reference_device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the torch engine runs that the other is compared with."""
    reference_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of that engine's weights and KV cache; auto: that of --torch.dtype."""
    answer_token_count: int = Field(default=32, ge=1)
    """Tokens of each answer that are compared."""
    tolerance: float = Field(default=0.3, ge=0)
    """How much less the log probability of a token may be than that of the reference's."""
    least_agreement: float = Field(default=0.98, ge=0, le=1)
    """Share of the tokens that must agree."""

    @property
    def reference(self) -> Settings:
        """The options of the torch engine."""
        dtype = self.torch.dtype if self.reference_dtype == "auto" else self.reference_dtype
        changes = {"device": self.reference_device, "dtype": dtype}
        options = self.torch.model_copy(update=changes)
        return self.model_copy(update={"engine": "torch", "torch": options})


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
    except (CheckpointError, EngineStartError, ServiceError, OSError) as error:
        sys.exit(str(error))
    if agreement < settings.least_agreement:
        sys.exit(f"FAILED: {agreement:.1%} is less than --least-agreement")
    sys.stdout.write("passed\n")


async def compare(settings: SelftestSettings) -> float:
    """Returns the share of the torch engine's tokens that the settings' engine agrees with.

    Raises:
        CheckpointError: the checkpoint is not one that we serve.
        ServiceError: an engine failed, or takes no such prompt.
        EngineStartError: an engine cannot run here.
    """
    config, tokenizer, template = read_model(settings)
    if not serves_callers(settings):
        await asyncio.to_thread(create_engine, settings, config, tokenizer)  # ends this process
    prompts = [make_prompt(question, config, tokenizer, template) for question in QUESTIONS]
    greedy = SamplingParams(max_tokens=settings.answer_token_count)
    async with running_engine(settings.reference, config, tokenizer) as engine:
        scored = replace(greedy, logprob_count=MAX_LOGPROB_COUNT)
        expected = [await answer(engine, prompt, scored) for prompt in prompts]
    # The other engine does not take its memory from PyTorch.
    del engine
    gc.collect()
    torch.cuda.empty_cache()
    async with running_engine(settings, config, tokenizer) as engine:
        _report(settings.engine, [await answer(engine, prompt, greedy) for prompt in prompts])
        agreed = [
            agrees
            for prompt, reference in zip(prompts, expected, strict=True)
            for agrees in await agreements(engine, prompt, reference, settings.tolerance)
        ]
    sys.stdout.write(f"{sum(agreed)} of {len(agreed)} tokens agree with the torch engine's\n")
    return sum(agreed) / len(agreed)


@asynccontextmanager
async def running_engine(
    settings: Settings, config: LLMConfig, tokenizer: Tokenizer
) -> AsyncIterator[LLMEngine]:
    """Yields the engine that the settings name, and closes it; errors as create_engine."""
    engine = await asyncio.to_thread(create_engine, settings, config, tokenizer)
    try:
        yield engine
    finally:
        await engine.close()


def make_prompt(
    question: Message, config: LLMConfig, tokenizer: Tokenizer, template: Template
) -> Prompt:
    """Returns a question as a prompt; an image is one tile of noise, the same in every prompt."""
    row_counts = [config.rows_per_tile] * question.image_count
    layout = chat_layout(tokenizer, template, [question])
    token_ids = layout.token_ids(row_counts, config.vocabulary_size)
    table = torch.empty(sum(row_counts), config.hidden_size)
    for index, rows in enumerate(table.view(-1, config.rows_per_tile, config.hidden_size)):
        rows.normal_(generator=torch.Generator().manual_seed(index))
    images = tuple(_noise(index, count) for index, count in enumerate(row_counts))
    return Prompt(token_ids, table, images)


def _noise(index: int, row_count: int) -> ImageRows:
    name = EmbeddingId(content_digest(b"noise %d" % index), content_digest(b"self-test"))
    return ImageRows(name, row_count)


async def answer(engine: LLMEngine, prompt: Prompt, params: SamplingParams) -> Answer:
    """Returns what an engine writes after a prompt, and how long that took."""
    started = time.perf_counter()
    times: list[float] = []
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    async with aclosing(engine.generate(Request(prompt, params))) as outputs:
        async for output in outputs:
            token_ids += output.token_ids
            logprobs += output.logprobs
            times += [time.perf_counter() - started] * len(output.token_ids)
    return Answer(token_ids, logprobs, times[0], times[-1])


async def agreements(
    engine: LLMEngine, prompt: Prompt, reference: Answer, tolerance: float
) -> list[bool]:
    """Returns for each token of an answer whether an engine agrees with it.

    Args:
        engine: which is asked for each token alone, after the same tokens before it.
        prompt: what the answer follows.
        reference: the answer, with log probabilities.
        tolerance: how much less than the best one's the log probability of its token may be.
    """
    params = SamplingParams(max_tokens=1)
    agreed = []
    for index, expected in enumerate(reference.logprobs):
        before = replace(prompt, token_ids=prompt.token_ids + reference.token_ids[:index])
        (token_id,) = (await answer(engine, before, params)).token_ids
        agreed.append(dict(expected.top).get(token_id, -math.inf) >= expected.logprob - tolerance)
    return agreed


def _report(name: str, answers: list[Answer]) -> None:
    for question, given in zip(QUESTIONS, answers, strict=True):
        later = len(given.token_ids) - 1
        seconds = given.total_seconds - given.first_token_seconds
        speed = f"{later / seconds:.1f} tokens/s" if seconds > 0 else "one token"
        sys.stdout.write(
            f"{name}: {question.image_count} image(s), first token after "
            f"{1000 * given.first_token_seconds:.1f} ms, then {speed}\n"
        )


if __name__ == "__main__":
    main()
