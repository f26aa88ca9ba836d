"""HTTP's manners: paths that are missed, pages of other origins, health."""

from __future__ import annotations

import asyncio
import json

import pytest

from gateway.services.routing import OFFER_COUNT
from protos.errors import OverloadedError
from tests.fakes import Gateway, ScriptedLLM, chat_body, happening, stack
from tests.integration.test_gateway_connections import answer_to, connected, error_of

CHAT = "/v1/chat/completions"
PAGE = "https://chat.example.com"
SERVED = (
    "POST /v1/chat/completions, POST /v1/completions, POST /v1/responses, POST /v1/messages,"
    " POST /v1/messages/count_tokens, DELETE or GET /v1/responses/{id}, GET /v1/models,"
    " GET /v1/models/{id}, GET /v1/tiles, GET /v1/status, POST /tokenize, POST /detokenize,"
    " GET /tokenizer_info, GET /version, GET /load, GET /health, GET /health/live,"
    " GET /health/ready, GET /ping, GET /openapi.json, GET /, GET /docs, GET /page/{path}"
)


async def status_and_message(gateway: Gateway, request_line: str, *headers: str) -> tuple[int, str]:
    lines = [f"{request_line} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]
    answer = await answer_to(gateway, "\r\n".join(lines).encode())
    return int(answer.split()[1]), error_of(answer)["message"]


@pytest.mark.parametrize("path", ["/health", "/ping"])
async def test_health_as_vllm_has_it_is_readiness(path: str) -> None:
    async with stack() as gateway:
        assert await gateway.get(path) == (200, {"status": "ready"})
        async with gateway.http.head(path) as response:
            assert (response.status, await response.read()) == (200, b"")
    async with stack(closed=["llm"]) as gateway:
        assert (await gateway.get(path))[0] == 503


GUESSES = {
    "POST /chat/completions": "POST /v1/chat/completions",
    "POST /v1/chat/completions/": "POST /v1/chat/completions",
    "POST //v1/chat/completions": "POST /v1/chat/completions",
    "POST /v1//chat/completions": "POST /v1/chat/completions",
    "POST /v1/v1/chat/completions": "POST /v1/chat/completions",
    "POST /openai/deployments/x/chat/completions": "POST /v1/chat/completions",
    "POST /v1/chat/completion": "POST /v1/chat/completions",
    "GET /models": "GET /v1/models",
    "GET /V1/Models": "GET /v1/models",
    "GET /healthz": "GET /health",
    "GET /status": "GET /v1/status",
}


async def test_an_unknown_path_is_led_on() -> None:
    async with stack() as gateway:
        for missed, meant in GUESSES.items():
            status, message = await status_and_message(gateway, missed)
            assert status == 404
            assert message == (
                f"there is no {missed}; did you mean {meant}? This server has {SERVED}"
            )
        for missed in ("GET /index", "POST /v1/rerank", "POST /v1/embeddings", "OPTIONS *"):
            expected = f"there is no {missed}; this server has {SERVED}"
            assert await status_and_message(gateway, missed) == (404, expected)


async def test_an_unknown_path_is_shown_cut_and_without_what_may_be_secret() -> None:
    async with stack() as gateway:
        _, message = await status_and_message(gateway, "GET /<b>\"'?key=SECRET")
        assert message.startswith("there is no GET /?b??'; this server has")
        _, message = await status_and_message(gateway, f"GET /{'x' * 5000}")
        assert message.startswith(f"there is no GET /{'x' * 99}...; this server has")


async def test_a_wrong_method_is_told_the_right_ones() -> None:
    async with stack() as gateway, gateway.http.delete("/v1/models") as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET,HEAD")
        message = (await response.json())["error"]["message"]
    assert message == "/v1/models does not take DELETE; it takes GET or HEAD"


@pytest.mark.parametrize("path", ["/v1/models", "/nowhere"])
async def test_an_unknown_expectation_is_417_on_every_path(path: str) -> None:
    async with stack() as gateway:
        status, message = await status_and_message(gateway, f"GET {path}", "Expect: much")
    assert (status, message) == (417, "the request expects what this server does not know")


@pytest.mark.parametrize("upgrade", ["h2c", "websocket"])
async def test_an_upgrade_is_declined_and_the_request_answered(upgrade: str) -> None:
    body = json.dumps(chat_body()).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: {upgrade}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    async with stack() as gateway:
        answer = await answer_to(gateway, head.encode() + body)
    assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("pause", [0.0, 0.1])
async def test_a_body_that_breaks_off_into_something_else_is_refused_at_once(pause: float) -> None:
    """And not after the time that a body may take."""
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nOrigin: {PAGE}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    async with (
        stack(allowed_origins=(PAGE,)) as gateway,
        connected(gateway, head.encode() + b"1\r\n{\r\n") as (reader, writer),
    ):
        await asyncio.sleep(pause)
        writer.write(b"no length\r\n")
        answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.split()[1] == b"400"
    if pause:
        assert error_of(answer)["message"] == "the body is not what its headers say"
        assert f"Access-Control-Allow-Origin: {PAGE}".encode() in answer


async def test_a_page_of_an_allowed_origin_may_ask_and_read() -> None:
    llm = ScriptedLLM(failures=[OverloadedError("full", retry_after=2)] * OFFER_COUNT)
    headers = {"Origin": PAGE}
    asked = headers | {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    }
    async with stack(llm=llm, allowed_origins=(PAGE,)) as gateway:
        async with gateway.http.options(CHAT, headers=asked) as response:
            assert (response.status, await response.read()) == (204, b"")
            assert response.headers["Access-Control-Allow-Headers"] == (
                "authorization,content-type,x-stainless-os"
            )
            assert "POST" in response.headers["Access-Control-Allow-Methods"]
            assert response.headers["Access-Control-Allow-Origin"] == PAGE
        for body, status in (
            (chat_body(), 429),
            (chat_body(), 200),
            (chat_body(stream=True), 200),
            ({}, 400),
        ):
            async with gateway.http.post(CHAT, json=body, headers=headers) as response:
                assert response.status == status
                assert response.headers["Access-Control-Allow-Origin"] == PAGE
                assert response.headers["Vary"] == "Origin"
                assert "retry-after" in response.headers["Access-Control-Expose-Headers"]
        async with gateway.http.get("/nowhere", headers=headers) as response:
            assert response.status == 404
            assert response.headers["Access-Control-Allow-Origin"] == PAGE


@pytest.mark.parametrize("allowed", [(), ("https://other.example.com",)])
async def test_other_pages_hear_nothing_and_are_answered_as_ever(allowed: tuple[str, ...]) -> None:
    headers = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    async with stack(allowed_origins=allowed) as gateway:
        for method, status in (("OPTIONS", 405), ("POST", 200)):
            async with gateway.http.request(
                method, CHAT, json=chat_body(), headers=headers
            ) as response:
                assert response.status == status
                assert not [name for name in response.headers if name.startswith("Access-Control")]


@pytest.mark.parametrize(
    ("site", "origin", "status"),
    [
        ("cross-site", "https://evil.example.com", 403),
        ("same-site", "http://127.0.0.1:9999", 403),
        ("cross-site", "null", 403),
        ("cross-site", PAGE, 200),
        ("same-origin", "http://127.0.0.1", 200),
        ("none", "", 200),
    ],
)
async def test_no_page_that_somebody_looks_at_uses_the_model(
    site: str, origin: str, status: int
) -> None:
    llm = ScriptedLLM()
    # What a browser sends without a preflight.
    headers = {"Sec-Fetch-Site": site, "Origin": origin, "Content-Type": "text/plain"}
    body = json.dumps(chat_body()).encode()
    async with (
        stack(llm=llm, allowed_origins=(PAGE,)) as gateway,
        gateway.http.post(CHAT, data=body, headers=headers) as response,
    ):
        assert response.status == status
        if status == 403:
            assert "--allowed-origins" in (await response.json())["error"]["message"]
        assert len(llm.starts) == (status == 200)


async def test_a_preflight_is_answered_while_all_connections_are_at_work() -> None:
    headers = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    async with stack(
        llm=ScriptedLLM(stalls=True), max_connection_count=1, allowed_origins=("*",)
    ) as gateway:
        asking = asyncio.create_task(gateway.chat())
        await happening(gateway.llm.stalled)
        async with gateway.http.options(CHAT, headers=headers) as response:
            assert response.status == 204
        gateway.llm.released.set()
        assert (await asking)[0] == 200
