"""First token: a chat request through HTTP and three processes, against the two engines alone."""

from __future__ import annotations

import asyncio
import base64
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import torch

from gateway.local.stack import Stack
from llm_service.__main__ import load as load_llm
from llm_service.conversation import Message, Role
from llm_service.engines.base import ImageRows, Prompt, Request
from llm_service.pieces import ImagePart
from llm_service.prompt import chat_layout
from llm_service.sampling import SamplingParams
from llm_service.settings import Settings as LLMSettings
from llm_service.settings import TorchOptions
from protos.identity import EmbeddingId, content_digest
from tests.benchmarks.measurement import Seconds, median_ms
from tests.benchmarks.photo import photo
from tests.benchmarks.report import Report
from tests.random_checkpoint import write_random_checkpoint
from tests.real_tokenizers import FOLDER as TOKENIZERS
from tests.tiled_files import tile_file
from vision_service.__main__ import load as load_vision
from vision_service.settings import Settings as VisionSettings
from vision_service.settings import TorchOptions as VisionTorchOptions

THREAD_COUNT = 1
REPEAT_COUNT = 15
QUESTION, ANSWER, FOLLOW_UP = (
    "What is in this picture?",
    "A house at a lake.",
    "Which season is it?",
)


@dataclass(frozen=True)
class Case:
    """A conversation: what is said in turn, and whether its first message holds the picture."""

    name: str
    texts: tuple[str, ...]
    image_count: int

    def body(self, model: str, image: bytes) -> bytes:
        """Returns it as a request for one token."""
        url = f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"
        messages: list[dict[str, Any]] = [
            {"role": role.value, "content": [{"type": "text", "text": text}]}
            for role, text in self._turns()
        ]
        picture = {"type": "image_url", "image_url": {"url": url}}
        messages[0]["content"] += [picture] * self.image_count
        options = {"max_tokens": 1, "stream": True, "stream_options": {"include_usage": True}}
        return json.dumps({"model": model, "messages": messages, **options}).encode()

    def messages(self) -> list[Message]:
        """Returns it as the LLM service has it."""
        turns = [Message(role, (text,)) for role, text in self._turns()]
        first = replace(turns[0], parts=(*turns[0].parts, *[ImagePart()] * self.image_count))
        return [first, *turns[1:]]

    def _turns(self) -> Iterator[tuple[Role, str]]:
        return zip(cycle([Role.USER, Role.ASSISTANT]), self.texts, strict=False)


CASES = (
    Case("first turn, 13 tiles", (QUESTION,), 1),
    Case("second turn, same picture", (QUESTION, ANSWER, FOLLOW_UP), 1),
    Case("text only", (QUESTION,), 0),
)
COMPARED = """\
"HTTP" is from sending a streaming request (its picture as base64) to the first event of the answer,
through gateway, vision service and LLM service in three processes. "Engines" is the same work by
the same code in one process: decoding and tiling, the vision engine, the chat template, the LLM
engine's first token; in the second turn the embedding is at hand, as the LLM service's table cache
has it. Both read the same number of prompt tokens. Every first turn shows a file never seen before.
The checkpoint is random and tiny (hidden size 64, 2 + 2 layers) with the real geometry and the
Qwen2.5 tokenizer: what carries over to real models is the overhead in milliseconds, not the ratio,
and larger hidden sizes add their transfer (see transfer.md). One thread per engine; medians; all
ways take turns."""


def run(progress: Callable[[str], None]) -> Report:
    """Measures; this process is the HTTP client, and then the engines."""
    torch.set_num_threads(THREAD_COUNT)
    progress("the time to the first token")
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = Path(temporary) / "random-internvl"
        write_random_checkpoint(checkpoint, tokenizer=TOKENIZERS / "qwen2_5")
        threads = ("--torch.thread-count", str(THREAD_COUNT))
        with Stack(checkpoint, Path(temporary), service_arguments=threads) as stack:
            results = asyncio.run(_measure(stack.url, checkpoint))
    report = Report(
        title="Time to the first token, milliseconds",
        compared=COMPARED,
        columns=("request", "prompt tokens", "engines", "HTTP", "overhead", "HTTP / engines"),
    )
    for result in results:
        seconds = result.seconds()
        engines, http = (median_ms(seconds[way]) for way in ("engines", "http"))
        numbers = [f"{ms:.1f}" for ms in (engines, http, http - engines)]
        cells = [str(result.prompt_token_count()), *numbers, f"{http / engines:.2f}"]
        report.add(result.case.name, cells, seconds)
    return report


class Timing(NamedTuple):
    """Seconds to the first token, and the tokens of the prompt."""

    seconds: float
    prompt_token_count: int


@dataclass(frozen=True)
class Result:
    """The runs of one case; the first of them warms up."""

    case: Case
    engines: list[Timing] = field(default_factory=list)
    http: list[Timing] = field(default_factory=list)

    def seconds(self) -> Seconds:
        """Returns the measured seconds by way."""
        ways = {"engines": self.engines, "http": self.http}
        return {way: [run.seconds for run in runs[1:]] for way, runs in ways.items()}

    def prompt_token_count(self) -> int:
        """Returns the count that all runs agree upon."""
        (count,) = {run.prompt_token_count for run in self.engines + self.http}
        return count


class Engines:
    """Both engines in this process, and the embedding of the latest picture."""

    def __init__(self, checkpoint: Path) -> None:
        vision_threads = VisionTorchOptions(thread_count=THREAD_COUNT)
        vision = VisionSettings(checkpoint=checkpoint, torch=vision_threads)
        llm = LLMSettings(checkpoint=checkpoint, torch=TorchOptions(thread_count=THREAD_COUNT))
        self._vision_config, self._vision = load_vision(vision)
        self._max_pixel_count = vision.max_image_pixel_count
        self._model, self._llm = load_llm(llm)
        self._embedding = self._no_rows = torch.empty(0, self._vision_config.output_size)

    async def ask(self, case: Case, image: bytes) -> Timing:
        """Generates one token; a conversation's first turn embeds the picture."""
        started = time.perf_counter()
        if case.image_count and len(case.texts) == 1:
            self._embedding = self._embed(image)
        rows = self._embedding if case.image_count else self._no_rows
        layout = chat_layout(self._model.tokenizer, self._model.template, case.messages())
        row_counts = [len(rows)] * case.image_count
        token_ids = layout.token_ids(row_counts, self._model.config.vocabulary_size)
        embedding_id = EmbeddingId(content_digest(image), recipe_sha256=bytes(32))
        prompt = Prompt(token_ids, rows, tuple(ImageRows(embedding_id, n) for n in row_counts))
        outputs = self._llm.generate(Request(prompt, SamplingParams(max_tokens=1)))
        async with aclosing(outputs):
            await anext(outputs)
        return Timing(time.perf_counter() - started, len(token_ids))

    async def aclose(self) -> None:
        """Ends the LLM engine's thread."""
        await self._llm.close()

    def _embed(self, image: bytes) -> torch.Tensor:
        config = self._vision_config
        tiled = tile_file(
            image,
            tile_size=config.tile_size,
            max_tile_count=config.max_dynamic_patch,
            max_pixel_count=self._max_pixel_count,
        )
        return self._vision.encode(torch.from_numpy(tiled.tiles)).flatten(0, 1)


async def _measure(url: str, checkpoint: Path) -> list[Result]:
    results = [Result(case) for case in CASES]
    picture, engines = photo("JPEG", 1000, 747), Engines(checkpoint)
    async with aiohttp.ClientSession(url) as http, aclosing(engines):
        for repeat in range(1 + REPEAT_COUNT):
            # A decoder stops at the JPEG's end marker: only the file's digest is another.
            image = picture + repeat.to_bytes(4, "big")
            for result in results:
                body = result.case.body(checkpoint.name, image)
                result.http.append(await _ask(http, body))
                result.engines.append(await engines.ask(result.case, image))
    return results


async def _ask(http: aiohttp.ClientSession, body: bytes) -> Timing:
    headers = {"Content-Type": "application/json"}
    started = time.perf_counter()
    async with http.post("/v1/chat/completions", data=body, headers=headers) as response:
        response.raise_for_status()
        await response.content.readline()
        seconds = time.perf_counter() - started
        *_, usage, _, _ = (await response.text()).split("\n\n")  # [DONE] and nothing follow it
    return Timing(seconds, json.loads(usage.removeprefix("data: "))["usage"]["prompt_tokens"])
