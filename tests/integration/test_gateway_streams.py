"""Streams in which nothing comes for a while: proxies and clients keep them all the same."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack

import openai
import pytest

from protos.errors import EngineDeadError
from tests.fakes import Gateway, ScriptedLLM, chat_body, happening, stack
from tests.integration.test_gateway_connections import chat_request, connected
from tests.integration.test_gateway_openai import QUESTION, connect

CHAT = "/v1/chat/completions"
COMMENT = b": keep-alive\n\n"
SILENCE_SECONDS = 0.05
STREAM = chat_body(stream=True)


async def read_stream(gateway: Gateway, llm: ScriptedLLM, comment_count: int = 2) -> list[bytes]:
    """Returns the events of a stream whose LLM goes on once some comments have come."""
    async with gateway.http.post(CHAT, json=STREAM) as response:
        assert response.status == 200
        events: list[bytes] = []
        while events[-1:] != [b"data: [DONE]\n\n"]:
            event = await asyncio.wait_for(response.content.readuntil(b"\n\n"), 5)
            events.append(event)
            if events.count(COMMENT) == comment_count:
                llm.released.set()
        assert await response.read() == b""
    return events


@pytest.mark.parametrize("texts", [("Hel", "lo"), ()], ids=["within", "before the first token"])
async def test_a_silent_stream_has_comments_and_loses_nothing(texts: tuple[str, ...]) -> None:
    llm = ScriptedLLM(texts=texts, stalls=True)
    async with stack(llm=llm, sse_keep_alive_seconds=SILENCE_SECONDS) as gateway:
        events = await read_stream(gateway, llm)
    chunks = [json.loads(event[6:]) for event in events if event.startswith(b"data: {")]
    assert len(chunks) + events.count(COMMENT) + 1 == len(events)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "".join(texts)
    assert choices[0]["delta"]["role"] == "assistant"
    assert choices[-1]["finish_reason"] == "stop"


async def test_a_stream_that_flows_has_no_comments() -> None:
    llm = ScriptedLLM(texts=["x"] * 200)
    async with stack(llm=llm, sse_keep_alive_seconds=5) as gateway:
        assert COMMENT not in await gateway.read_chat(stream=True)


@pytest.mark.parametrize("texts", [("Hel", "lo"), ()])
async def test_the_openai_client_reads_past_comments(texts: tuple[str, ...]) -> None:
    llm = ScriptedLLM(texts=texts, stalls=True)
    async with (
        stack(llm=llm, sse_keep_alive_seconds=SILENCE_SECONDS) as gateway,
        connect(gateway) as client,
    ):
        stream = await client.chat.completions.create(
            model="scripted", messages=QUESTION, stream=True
        )
        asyncio.get_running_loop().call_later(4 * SILENCE_SECONDS, llm.released.set)
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "".join(texts)
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_an_error_after_the_first_comment_is_an_event() -> None:
    llm = ScriptedLLM(failure_after_wanted=EngineDeadError("x"))
    async with stack(llm=llm, sse_keep_alive_seconds=SILENCE_SECONDS) as gateway:
        async with gateway.http.post(CHAT, json=STREAM) as response:
            assert response.status == 200
            assert await response.content.readuntil(b"\n\n") == COMMENT
            llm.failure_signal.set()
            body = await response.read()
        async with connect(gateway) as client:
            llm.failure_signal.clear()
            asyncio.get_running_loop().call_later(4 * SILENCE_SECONDS, llm.failure_signal.set)
            stream = await client.chat.completions.create(
                model="scripted", messages=QUESTION, stream=True
            )
            with pytest.raises(openai.APIError, match="engine"):
                await anext(stream)
    error = json.loads(body.replace(COMMENT, b"").removeprefix(b"data: "))["error"]
    assert error["code"] == "engine_dead"


async def test_without_comments_an_error_has_its_status_however_late() -> None:
    llm = ScriptedLLM(failure_after_wanted=EngineDeadError("x"))
    async with stack(llm=llm, sse_keep_alive_seconds=0) as gateway:
        asyncio.get_running_loop().call_later(4 * SILENCE_SECONDS, llm.failure_signal.set)
        assert (await gateway.chat(stream=True))[0] == 503


async def test_leaving_a_stream_of_comments_ends_the_generation() -> None:
    llm = ScriptedLLM(texts=(), stalls=True)
    async with stack(llm=llm, sse_keep_alive_seconds=SILENCE_SECONDS) as gateway:
        async with gateway.http.post(CHAT, json=STREAM) as response:
            assert await response.content.readuntil(b"\n\n") == COMMENT
            response.close()
        await happening(llm.cancelled)


async def test_a_stream_of_comments_is_told_when_the_gateway_stops() -> None:
    llm = ScriptedLLM(texts=(), stalls=True)
    async with AsyncExitStack() as exits:
        async with stack(llm=llm, sse_keep_alive_seconds=SILENCE_SECONDS) as gateway:
            connection = connected(gateway, chat_request(stream=True))
            reader, _ = await exits.enter_async_context(connection)
            await reader.readuntil(COMMENT)
        events = await asyncio.wait_for(reader.readuntil(b"}}\n\n"), 5)
    error = json.loads(events.rpartition(b"data: ")[2])["error"]
    assert error["message"] == "the gateway has stopped before the end of the answer"
