"""The gateway between services that share memory: it passes on where, and holds it until read."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field

import pytest

from protos.errors import DataLossError
from protos.internvl.v1 import llm_pb2, tensor_pb2, vision_pb2
from tests.fakes import LLMContext, ScriptedLLM, ScriptedVision, VisionContext, happening, stack

MEMORY = tensor_pb2.SharedMemory(file="f" * 32, nonce=b"n" * 32)
PROMPT = "What is it?"
# Long enough for what must not happen.
A_WHILE_SECONDS = 0.2


@dataclass
class LendingVision(ScriptedVision):
    """Says where the embedding lies, and lends it until its caller ends the call."""

    sent: list[tensor_pb2.SharedEmbedding] = field(default_factory=list)
    given_back_count: int = 0

    async def EncodeImage(
        self, request: vision_pb2.EncodeImageRequest, context: VisionContext
    ) -> AsyncGenerator[vision_pb2.EncodeImageResponse, None]:
        self.requests.append(request)
        yield self._header(request)
        place = tensor_pb2.SharedEmbedding(
            image_index=request.image_index, file="a" * 32, offset=1 << 40, nonce=b"s" * 32
        )
        self.sent.append(place)
        yield vision_pb2.EncodeImageResponse(shared_embedding=place)
        yield vision_pb2.EncodeImageResponse(trailer=vision_pb2.EncodeImageTrailer(crc32=7))
        try:
            await asyncio.Event().wait()
        finally:
            self.given_back_count += 1
            self.cancelled.set()


@dataclass
class ReadingLLM(ScriptedLLM):
    """Reads what it is told of when it may, and answers when it may."""

    may_read: asyncio.Event = field(default_factory=asyncio.Event)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    told: asyncio.Event = field(default_factory=asyncio.Event)
    got: list[llm_pb2.GenerateRequest] = field(default_factory=list)
    read_error: DataLossError | None = None

    async def Generate(
        self, requests: AsyncIterator[llm_pb2.GenerateRequest], context: LLMContext
    ) -> AsyncGenerator[llm_pb2.GenerateResponse, None]:
        try:
            start = (await anext(requests)).start
            self._note(start, context)
            wanted = self._wanted(start)
            yield llm_pb2.GenerateResponse(
                wanted=llm_pb2.WantedImages(image_indexes=wanted, shared_memory=MEMORY)
            )
            for _ in range(3 * len(wanted)):
                self.got.append(await anext(requests))
            self.told.set()
            await self.may_read.wait()
            if self.read_error is not None:
                raise self.read_error
            for index in wanted:
                read = llm_pb2.EmbeddingRead(image_index=index)
                yield llm_pb2.GenerateResponse(embedding_read=read)
            await self.may_answer.wait()
            async for response in self._answer(start):
                yield response
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise


@pytest.fixture
def vision() -> LendingVision:
    return LendingVision()


@pytest.fixture
def llm() -> ReadingLLM:
    return ReadingLLM()


def messages(*images: bytes) -> list[object]:
    urls = [f"data:image/png;base64,{base64.b64encode(image).decode()}" for image in images]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": PROMPT}]}]


async def test_vision_lends_until_the_llm_service_has_read(
    vision: LendingVision, llm: ReadingLLM
) -> None:
    async with stack(vision, llm) as gateway:
        answer = asyncio.create_task(gateway.chat(messages=messages(b"one")))
        await happening(llm.told)
        await asyncio.sleep(A_WHILE_SECONDS)
        assert not vision.cancelled.is_set()
        llm.may_read.set()
        await happening(vision.cancelled)
        assert not answer.done()
        llm.may_answer.set()
        status, body = await answer
    assert status == 200
    assert body["choices"][0]["message"]["content"] == "Hello"
    assert vision.requests[0].shared_memory == MEMORY
    (place,) = (got.shared_embedding for got in llm.got if got.HasField("shared_embedding"))
    assert [place] == vision.sent
    kinds = [got.WhichOneof("message") for got in llm.got]
    assert kinds == ["embedding_header", "shared_embedding", "embedding_trailer"]


async def test_each_image_of_a_request_is_lent_for_itself(
    vision: LendingVision, llm: ReadingLLM
) -> None:
    llm.may_read.set()
    llm.may_answer.set()
    async with stack(vision, llm) as gateway:
        status, _ = await gateway.chat(messages=messages(b"one", b"two", b"one", b"three"))
        assert status == 200
        await happening(vision.cancelled)
    assert vision.given_back_count == 3
    assert sorted(place.image_index for place in vision.sent) == [0, 1, 3]


class HastyLLM(ReadingLLM):
    """Answers, and never says that it has read; of so many messages of an image's three."""

    def __init__(self, message_count: int) -> None:
        super().__init__()
        self.message_count = message_count

    async def Generate(
        self, requests: AsyncIterator[llm_pb2.GenerateRequest], context: LLMContext
    ) -> AsyncGenerator[llm_pb2.GenerateResponse, None]:
        start = (await anext(requests)).start
        self._note(start, context)
        wanted = llm_pb2.WantedImages(image_indexes=self._wanted(start), shared_memory=MEMORY)
        yield llm_pb2.GenerateResponse(wanted=wanted)
        for _ in range(self.message_count):
            self.got.append(await anext(requests))
        answer = [response async for response in self._answer(start)]
        yield answer[0]
        async for message in requests:
            self.got.append(message)
        for response in answer[1:]:
            yield response


@pytest.mark.parametrize("message_count", [0, 1, 3])
async def test_who_answers_has_read(vision: LendingVision, message_count: int) -> None:
    llm = HastyLLM(message_count)
    async with stack(vision, llm, request_seconds=5) as gateway:
        status, body = await gateway.chat(messages=messages(b"one"))
        await happening(vision.cancelled)
    assert status == 200
    assert body["choices"][0]["message"]["content"] == "Hello"
    assert len(llm.got) == 3


async def test_what_cannot_be_read_is_given_back(vision: LendingVision, llm: ReadingLLM) -> None:
    llm.read_error = DataLossError("not there", retry_after=0.0)
    async with stack(vision, llm) as gateway:
        answer = asyncio.create_task(gateway.chat(messages=messages(b"one")))
        await happening(llm.told)
        assert not vision.cancelled.is_set()
        llm.may_read.set()
        status, _ = await answer
        assert status >= 500
        await happening(vision.cancelled)


async def test_a_client_that_goes_gives_all_back(vision: LendingVision, llm: ReadingLLM) -> None:
    async with stack(vision, llm) as gateway:
        body = {"model": "scripted", "messages": messages(b"one", b"two")}
        data = io.BytesIO(json.dumps(body).encode())
        asking = asyncio.create_task(gateway.http.post("/v1/chat/completions", data=data))
        await happening(llm.told)
        assert vision.given_back_count == 0
        asking.cancel()
        await happening(vision.cancelled)
        await happening(llm.cancelled)
        await asyncio.sleep(A_WHILE_SECONDS)
    assert vision.given_back_count == 2


async def test_without_memory_of_the_llm_services_vision_is_told_of_none() -> None:
    async with stack() as gateway:
        status, _ = await gateway.chat(messages=messages(b"one"))
        assert status == 200
        assert not gateway.vision.requests[0].HasField("shared_memory")
