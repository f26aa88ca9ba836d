"""Two hundred mixed requests at once over HTTP, of which many are broken off: none is lost.

The KV cache is so small that sequences wait for it and are preempted; at the end all of it is free.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from gateway.local.stack import Stack
from models.demo import DEMO_CHECKPOINT
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc
from tests.e2e.conftest import TORCH_AND_SLOWLY_TENSORRT_LLM, Engine, make_stack

pytestmark = pytest.mark.parametrize("engine", TORCH_AND_SLOWLY_TENSORRT_LLM, indirect=True)

PICTURES = Path(__file__).parents[2] / "models" / "demo" / "pictures"
REQUEST_COUNT = 200
STREAM_SHARE = 0.7
LEAVING_SHARE = 0.5
PATIENCE_SECONDS = 120.0
# 6 layers of keys and values, 2 heads of 64 float32: 4,096 tokens, a dozen pictures' prompts.
KV_CACHE_BYTES = 4096 * 6 * 2 * 2 * 64 * 4
QUESTIONS = ("What do you see in the picture?", "How many animals are there?", "Hello!")


@pytest.fixture(scope="module")
def stack(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with make_stack(
        engine,
        DEMO_CHECKPOINT,
        tmp_path_factory.mktemp("crowd"),
        gateway_arguments=["--file-root", str(PICTURES)],
        llm_arguments=["--kv-cache-byte-count", str(KV_CACHE_BYTES)],
    ) as stack:
        yield stack


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(stack.url, connector=connector) as session:
        yield session


@dataclass(frozen=True)
class Question:
    """What one request asks; equal ones get equal answers, as all are greedy."""

    text: str
    picture: str | None
    max_tokens: int

    def body(self) -> dict[str, Any]:
        parts: list[Any] = [{"type": "text", "text": self.text}]
        if self.picture:
            url = {"url": (PICTURES / self.picture).as_uri(), "detail": "low"}
            parts.append({"type": "image_url", "image_url": url})
        messages = [{"role": "user", "content": parts}]
        return {"model": "checkpoint", "messages": messages, "max_tokens": self.max_tokens}


@dataclass(frozen=True)
class Request:
    """A question, how it is asked, and when the client leaves.

    Attributes:
        options: further fields of the body.
        plain: whether the options leave the answer's text as it is.
        pieces: of a stream, reads of its body before the client leaves; None stays to the end.
    """

    question: Question
    options: dict[str, Any] = field(default_factory=dict)
    plain: bool = True
    pieces: int | None = None


def draw_request(draw: random.Random, engine: Engine) -> Request:
    picture = draw.choice([None, "scene.png", "pair-1.png", "pair-2.png", "sign.png"])
    question = Question(draw.choice(QUESTIONS), picture, draw.choice([1, 6, 24]))
    # The TensorRT-LLM engine has no top_logprobs.
    logprobs = {"logprobs": True} | ({"top_logprobs": 3} if engine == "torch" else {})
    plain: list[dict[str, Any]] = [{}, {"n": 2}, logprobs]
    plain += [{"priority": -1}, {"cache_salt": str(draw.randrange(3))}]
    shaping: list[dict[str, Any]] = [
        {"temperature": 1.0, "seed": draw.randrange(100)},
        {"structured_outputs": {"regex": "[a-z ]{5,30}"}},
        {"presence_penalty": 1.0},
    ]
    options = draw.choice(plain + shaping)
    if draw.random() > STREAM_SHARE:
        return Request(question, options, options in plain)
    pieces = draw.randrange(4) if draw.random() < LEAVING_SHARE else None
    return Request(question, options | {"stream": True}, options in plain, pieces)


async def ask(http: aiohttp.ClientSession, request: Request) -> list[str] | None:
    """Returns the texts of all choices; None if the client left, as the request has it."""
    body = request.question.body() | request.options
    async with http.post("/v1/chat/completions", json=body) as response:
        if request.pieces is not None:
            for _ in range(request.pieces):
                await response.content.readany()
            response.close()
            return None
        assert response.status == 200, await response.text()
        if "stream" in request.options:
            return streamed_texts(await response.text(), request.options.get("n", 1))
        return [choice["message"]["content"] for choice in (await response.json())["choices"]]


def streamed_texts(body: str, choice_count: int) -> list[str]:
    *lines, done, _ = body.split("\n\n")
    assert done == "data: [DONE]"
    texts = [""] * choice_count
    finished = set()
    for line in lines:
        (choice,) = json.loads(line.removeprefix("data: "))["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        if choice["finish_reason"]:
            finished.add(choice["index"])
    assert finished == set(range(choice_count))
    return texts


class Crowd:
    """All requests at once. Some clients leave at a piece; each answer drives another one away.

    Attributes:
        answers: by request index, of those who stayed to the end.
        left: indexes of those who did not.
    """

    def __init__(self, http: aiohttp.ClientSession, requests: list[Request]) -> None:
        self._http = http
        self._requests = requests
        self._impatient: dict[int, asyncio.Task[None]] = {}
        self.answers: dict[int, list[str]] = {}
        self.left: set[int] = set()

    async def run(self, impatient_count: int) -> None:
        tasks = [asyncio.create_task(self._client(index)) for index in range(len(self._requests))]
        self._impatient = dict(list(enumerate(tasks))[-impatient_count:])
        await asyncio.gather(*tasks)

    async def _client(self, index: int) -> None:
        try:
            answer = await ask(self._http, self._requests[index])
        except asyncio.CancelledError:
            answer = None
        self._impatient.pop(index, None)
        if answer is None:
            self.left.add(index)
        else:
            self.answers[index] = answer
            if self._impatient:
                self._impatient.popitem()[1].cancel()


async def idle_load(stack: Stack) -> llm_pb2.GetLoadResponse:
    """Returns the load once the last client's leaving has reached the engine."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{stack.llm.port}") as channel:
        stub: llm_pb2_grpc.LLMServiceAsyncStub = llm_pb2_grpc.LLMServiceStub(channel)
        while True:
            load = await stub.GetLoad(llm_pb2.GetLoadRequest())
            if load.running_sequence_count == load.waiting_sequence_count == 0:
                return load


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_none_is_lost_and_no_block_leaks(
    engine: Engine, stack: Stack, http: aiohttp.ClientSession
) -> None:
    draw = random.Random(4)
    requests = [draw_request(draw, engine) for _ in range(REQUEST_COUNT)]
    expected = {}
    for request in requests:
        if request.plain and request.question not in expected:
            expected[request.question] = await ask(http, Request(request.question))

    crowd = Crowd(http, requests)
    await asyncio.wait_for(crowd.run(impatient_count=40), PATIENCE_SECONDS)

    assert crowd.left | set(crowd.answers) == set(range(REQUEST_COUNT))
    assert not crowd.left & set(crowd.answers)
    assert len(crowd.left) >= 60
    assert len(crowd.answers) >= 80
    for index, answer in crowd.answers.items():
        if requests[index].plain:
            alone = expected[requests[index].question]
            assert alone is not None
            assert answer == alone * requests[index].options.get("n", 1)
    load = await asyncio.wait_for(idle_load(stack), PATIENCE_SECONDS)
    assert load.free_kv_token_count == load.total_kv_token_count == 4096
