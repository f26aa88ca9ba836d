"""Server-Timing over HTTP: whom it is told, in whole answers and in streams."""

from __future__ import annotations

from typing import Any

import pytest

from protos.errors import ServiceError
from tests.fakes import Gateway, ScriptedLLM, ScriptedVision, chat_body, stack
from tests.integration.test_gateway_metrics import about
from tests.server_timings import Told, told, told_by_stream

CHAT = "/v1/chat/completions"
ASKING = {"x-internvl-server-timing": "1"}
TEXT_STAGES = ["body", "prefill", "first_token", "decode", "total"]
ENCODED = "encoded 2x1+1 900x400"


async def timing(gateway: Gateway, *images: bytes, **fields: Any) -> Told:
    """Returns what a whole answer to a question about pictures tells."""
    body = chat_body(**about(*images, **fields) if images else fields)
    async with gateway.http.post(CHAT, json=body, headers=ASKING) as response:
        assert response.status == 200
        return told(response.headers["Server-Timing"])


async def stream(gateway: Gateway, headers: dict[str, str], **fields: Any) -> bytes:
    body = chat_body(stream=True, **fields)
    async with gateway.http.post(CHAT, json=body, headers=headers) as response:
        assert "Server-Timing" not in response.headers
        return await response.read()


async def test_a_whole_answer_tells_it_in_its_head() -> None:
    async with stack() as gateway:
        text = await timing(gateway)
        first = await timing(gateway, b"cat", b"dog", b"cat")
        again = await timing(gateway, b"cat")
    assert list(text.stages) == TEXT_STAGES
    assert text.images == []
    assert list(first.stages) == [
        *("body", "fetch", "encode_wait", "preprocess", "queue", "forward", "transfer"),
        *("prefill", "first_token", "decode", "total"),
    ]
    assert [first.stages[name] for name in ("preprocess", "queue", "forward")] == [11.1, 0.2, 290.5]
    assert first.images == [ENCODED] * 3
    assert list(again.stages) == ["body", "fetch", *TEXT_STAGES[1:]]
    assert again.images == ["llm"]


async def test_what_vision_has_in_its_cache_takes_no_time_of_its_stages() -> None:
    async with stack(ScriptedVision(cache_hit=True)) as gateway:
        found = await timing(gateway, b"cat")
    assert found.images == ["vision_cache 2x1+1 900x400"]
    assert {"encode_wait", "transfer"} < set(found.stages)
    assert not {"preprocess", "queue", "forward"} & set(found.stages)


async def test_a_stream_tells_it_in_a_comment_before_its_end() -> None:
    async with stack() as gateway:
        plain = await stream(gateway, {}, n=2, **about(b"cat"))
        asked = await stream(gateway, ASKING, n=2, **about(b"cat", b"dog"))
    assert b"server-timing" not in plain
    assert plain.endswith(b"data: [DONE]\n\n")
    found = told_by_stream(asked)
    assert found.images == ["llm", ENCODED]
    assert found.stages["first_token"] <= found.stages["total"]


@pytest.mark.parametrize(
    ("options", "headers", "is_told"),
    [
        ({}, {}, False),
        ({}, ASKING, True),
        ({"page": False}, ASKING, False),
        ({"page": False, "server_timing": True}, {}, True),
    ],
)
async def test_who_is_told(options: dict[str, Any], headers: dict[str, str], is_told: bool) -> None:
    async with stack(**options) as gateway:
        async with gateway.http.post(CHAT, json=chat_body(), headers=headers) as response:
            assert ("Server-Timing" in response.headers) is is_told
        assert (b"\n: server-timing: " in await stream(gateway, headers)) is is_told


async def test_a_stream_that_fails_ends_as_it_does_without() -> None:
    async with stack(llm=ScriptedLLM(late_failure=ServiceError("broken"))) as gateway:
        body = await stream(gateway, ASKING)
        async with gateway.http.post(CHAT, json=chat_body(), headers=ASKING) as response:
            assert (response.status, "Server-Timing" in response.headers) == (500, False)
    assert b"broken" in body
    assert b"server-timing" not in body


async def test_pages_of_allowed_origins_may_read_it() -> None:
    origin = {"Origin": "https://chat.example.com"}
    async with (
        stack(allowed_origins=[origin["Origin"]]) as gateway,
        gateway.http.post(CHAT, json=chat_body(), headers=ASKING | origin) as response,
    ):
        assert "server-timing" in response.headers["Access-Control-Expose-Headers"]
