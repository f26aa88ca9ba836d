"""Bodies: what is refused before it comes, and that what requests hold has an end."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway import app
from gateway.memory import FREE_BYTE_COUNT, Memory
from protos.errors import InvalidImageError, ServiceError
from tests.fakes import Gateway, ScriptedLLM, ScriptedVision, chat_body, happening, stack

CHAT = "/v1/chat/completions"
pytestmark = pytest.mark.timeout(60)


@asynccontextmanager
async def connection(
    gateway: Gateway, *headers: str
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Sends the head of a chat request, and yields the connection."""
    port = int(gateway.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write("\r\n".join([f"POST {CHAT} HTTP/1.1", "Host: x", *headers, "", ""]).encode())
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def read_error(reader: asyncio.StreamReader) -> tuple[int, Any]:
    """Returns the status of the answer that comes next, and its error."""
    status = int((await reader.readline()).split()[1])
    await reader.readuntil(b"\r\n\r\n")
    return status, json.loads(await reader.readuntil(b"}}"))["error"]


def images(*contents: bytes) -> list[dict[str, Any]]:
    urls = ["data:image/png;base64," + base64.b64encode(content).decode() for content in contents]
    return [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": url}} for url in urls],
        }
    ]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> list[Memory]:
    """The memories of gateways that start in the test."""
    memories: list[Memory] = []

    def remember(max_byte_count: int) -> Memory:
        memories.append(Memory(max_byte_count))
        return memories[-1]

    monkeypatch.setattr(app, "Memory", remember)
    return memories


@pytest.mark.parametrize("expectation", [(), ("Expect: 100-continue",)])
async def test_a_body_that_says_to_be_too_large_is_refused_before_it_comes(
    expectation: tuple[str, ...],
) -> None:
    async with (
        stack(max_body_byte_count=1000) as gateway,
        connection(gateway, "Content-Length: 1001", *expectation) as (reader, _),
    ):
        status, error = await read_error(reader)
    assert (status, error["code"]) == (413, "request_too_large")
    assert error["message"] == "the body has 1001 bytes or more; the limit is 1000"


async def test_a_body_that_does_not_say_how_large_it_is_has_the_same_limit() -> None:
    async with (
        stack(max_body_byte_count=1000) as gateway,
        connection(gateway, "Transfer-Encoding: chunked") as (reader, writer),
    ):
        writer.write(b"3e8\r\n" + b" " * 1000 + b"\r\n")
        writer.write(b"1\r\n \r\n")
        status, error = await read_error(reader)
    assert (status, error["code"]) == (413, "request_too_large")


async def test_a_client_that_waits_for_it_is_told_to_send_the_body() -> None:
    body = json.dumps(chat_body()).encode()
    headers = ("Expect: 100-continue", f"Content-Length: {len(body)}")
    async with stack() as gateway, connection(gateway, *headers) as (reader, writer):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await reader.readline()).split()[1] == b"200"


async def test_an_unknown_expectation_is_417() -> None:
    async with (
        stack() as gateway,
        connection(gateway, "Expect: much", "Content-Length: 9") as (reader, _),
    ):
        assert (await read_error(reader))[0] == 417


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "GZIP, identity"])
@pytest.mark.parametrize("expectation", [(), ("Expect: 100-continue",)])
async def test_a_compressed_body_is_refused_before_it_comes(
    encoding: str, expectation: tuple[str, ...]
) -> None:
    headers = (f"Content-Encoding: {encoding}", "Content-Length: 9", *expectation)
    async with stack() as gateway, connection(gateway, *headers) as (reader, _):
        status, error = await read_error(reader)
    assert (status, error["type"]) == (415, "invalid_request_error")
    assert error["message"] == "the body is compressed; send it as it is"


async def test_an_identical_body_is_taken() -> None:
    async with stack() as gateway:
        headers = {"Content-Encoding": "identity"}
        async with gateway.http.post(CHAT, json=chat_body(), headers=headers) as response:
            assert response.status == 200


async def test_bodies_that_do_not_come_take_no_place() -> None:
    async with (
        stack(max_request_count=1, body_seconds=1) as gateway,
        connection(gateway, "Content-Length: 99") as (first, _),
        connection(gateway, "Content-Length: 99") as (second, writer),
    ):
        writer.write(b'{"model"')
        assert (await gateway.chat())[0] == 200
        for reader in (first, second):
            status, error = await read_error(reader)
            assert (status, error["code"]) == (408, "request_timeout")


async def test_a_drain_waits_for_a_body_that_comes() -> None:
    body = json.dumps(chat_body()).encode()
    gateways = stack(drain_seconds=20)
    async with gateways as gateway:
        port = int(gateway.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        writer.write(body[:9])
        while (await gateway.get("/health/live"))[0] != 200:
            continue

        async def send_rest() -> None:
            await asyncio.sleep(0.3)
            writer.write(body[9:])

        sending = asyncio.create_task(send_rest())
    await sending
    assert (await reader.readline()).split()[1] == b"200"
    writer.transport.abort()


async def test_what_all_requests_hold_is_bounded(memory: list[Memory]) -> None:
    """A picture that stays is refused, and one that is gone is not; text always goes."""
    vision = ScriptedVision(stalls=True)
    picture = bytes(100_000)
    async with stack(vision, max_held_byte_count=150_000) as gateway:
        first = asyncio.create_task(gateway.chat(messages=images(picture, picture + b"1")))
        await happening(vision.stalled)  # gRPC has what was sent
        async with gateway.http.post(
            CHAT, json=chat_body(messages=images(bytes(300_000)))
        ) as response:
            error = (await response.json())["error"]
            assert (response.status, response.headers["Retry-After"]) == (429, "1")
        assert "the limit is 150000" in error["message"]
        assert error["code"] == "rate_limit_exceeded"
        assert (await gateway.chat())[0] == 200
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await happening(gateway.llm.cancelled)
        vision.stalls = False
        assert (await gateway.chat(messages=images(picture + b"2")))[0] == 200
    assert memory[0].held_byte_count == 0


LONG_TEXT: dict[str, Any] = {"texts": ["x" * 40_000] * 5}
LONG_CALL: dict[str, Any] = {"calls": [("f", ["1" * 40_000] * 5)]}
LONG_PROMPT: dict[str, Any] = {"prompt": [b"x" * 50_000]}
CHAT_TOOL = {"type": "function", "function": {"name": "f"}}
MESSAGES: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}
SCORED = {"prompt": "Hi", "echo": True, "logprobs": 1, "n": 4}


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        (CHAT, MESSAGES, LONG_TEXT),
        (CHAT, MESSAGES | {"tools": [CHAT_TOOL]}, LONG_CALL),
        ("/v1/completions", {"prompt": "Hi"}, LONG_TEXT),
        ("/v1/completions", SCORED, LONG_PROMPT),
        ("/v1/responses", {"input": "Hi"}, LONG_TEXT),
        ("/v1/responses", {"input": "Hi", "tools": [{"type": "function", "name": "f"}]}, LONG_CALL),
        ("/v1/messages", MESSAGES, LONG_TEXT),
        ("/v1/messages", MESSAGES | {"tools": [{"name": "f", "input_schema": {}}]}, LONG_CALL),
    ],
)
async def test_an_answer_that_is_collected_is_held(
    path: str, body: dict[str, Any], answer: dict[str, Any], memory: list[Memory]
) -> None:
    async with stack(llm=ScriptedLLM(**answer), max_held_byte_count=130_000) as gateway:
        async with gateway.http.post(path, json=body) as response:
            text = await response.text()
            assert (response.status, response.headers["Retry-After"]) == (429, "1"), text
        assert "the limit is 130000" in text
    async with (
        stack(llm=ScriptedLLM(**answer), max_held_byte_count=260_000) as gateway,
        gateway.http.post(path, json=body) as response,
    ):
        assert response.status == 200
    assert [each.held_byte_count for each in memory] == [0, 0]


async def test_of_streams_those_are_held_that_end_with_the_whole(memory: list[Memory]) -> None:
    streamed = {"stream": True}
    async with stack(llm=ScriptedLLM(**LONG_TEXT), max_held_byte_count=130_000) as gateway:
        for path, body in (
            (CHAT, MESSAGES),
            ("/v1/completions", {"prompt": "Hi"}),
            ("/v1/messages", MESSAGES),
        ):
            async with gateway.http.post(path, json=body | streamed) as response:
                assert "the limit is" not in await response.text()
        async with gateway.http.post("/v1/responses", json={"input": "Hi"} | streamed) as response:
            *_, last = (await response.text()).strip().split("\n\n")
    assert last.startswith("event: response.failed")
    assert "the limit is 130000" in last
    assert memory[0].held_byte_count == 0


async def test_images_are_let_go_once_they_are_encoded(memory: list[Memory]) -> None:
    llm = ScriptedLLM(stalls=True)
    async with stack(llm=llm) as gateway:
        contents = [bytes([index]) * 200_000 for index in range(3)]
        asking = asyncio.create_task(gateway.chat(messages=images(*contents)))
        await happening(llm.stalled)
        assert memory[0].held_byte_count == 0
        llm.released.set()
        assert (await asking)[0] == 200


async def test_images_that_are_not_wanted_are_let_go(memory: list[Memory]) -> None:
    async with stack() as gateway:
        messages = images(bytes(200_000), bytes(200_001))
        assert (await gateway.chat(messages=messages))[0] == 200
        gateway.llm.stalls = True
        asking = asyncio.create_task(gateway.chat(messages=messages))
        await happening(gateway.llm.stalled)
        assert memory[0].held_byte_count == 0
        gateway.llm.released.set()
        assert (await asking)[0] == 200
    assert len(gateway.vision.requests) == 2


@pytest.mark.parametrize(
    "end",
    [
        "refused image",
        "failed service",
        "left client",
        "bad request",
        "not JSON",
        "cut body",
        "drain",
    ],
)
async def test_nothing_is_held_after_any_end(end: str, memory: list[Memory]) -> None:
    vision = ScriptedVision(stalls=end in ("left client", "drain"))
    llm = ScriptedLLM()
    if end == "refused image":
        vision.failures = [InvalidImageError("x")]
    if end == "failed service":
        llm.failures = [ServiceError("x")]
    body = chat_body(messages=images(bytes(2 * FREE_BYTE_COUNT)))
    if end == "bad request":
        body["n"] = "many"
    data = json.dumps(body).encode()
    if end == "not JSON":
        data = data[:-2]
    async with stack(vision, llm) as gateway:
        length = len(data) + (1 if end == "cut body" else 0)
        async with connection(gateway, f"Content-Length: {length}") as (reader, writer):
            writer.write(data)
            if end in ("left client", "drain"):
                await happening(vision.stalled)
            elif end == "cut body":
                while not memory[0].held_byte_count:  # noqa: ASYNC110 - there is no event
                    await asyncio.sleep(0.01)
            else:
                assert (await read_error(reader))[0] >= 400
            if end != "drain":
                writer.transport.abort()
                while memory[0].held_byte_count:  # noqa: ASYNC110 - there is no event
                    await asyncio.sleep(0.01)
    assert memory[0].held_byte_count == 0


@pytest.mark.parametrize(
    ("path", "field", "part"),
    [
        (CHAT, "messages", lambda url: {"type": "image_url", "image_url": {"url": url}}),
        ("/v1/responses", "input", lambda url: {"type": "input_image", "image_url": url}),
    ],
)
async def test_too_many_images_are_told_in_the_words_of_their_dialect(
    path: str, field: str, part: Callable[[str], dict[str, Any]]
) -> None:
    turn = {"role": "user", "content": [part("data:image/png;base64,aGk=")] * 2}
    async with (
        stack(max_image_count=1) as gateway,
        gateway.http.post(path, json={field: [turn]}) as response,
    ):
        error = (await response.json())["error"]
    assert (response.status, error["param"]) == (400, field)
    assert "2 images or more; the limit is 1" in error["message"]
