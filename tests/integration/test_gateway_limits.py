"""What a caller's key allows and how much of it, over real HTTP: permissions, rates, slots."""

from __future__ import annotations

import asyncio
import gc
import json
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from structlog.testing import capture_logs

from gateway.access.callers import Policy
from gateway.generation import GenerationRequest
from gateway.metrics import Metrics
from protos.errors import InvalidArgumentError, ServiceError
from tests.fakes import MODEL, Gateway, ScriptedLLM, ScriptedVision, chat_body, happening, stack
from tests.integration.scrapes import scrape
from tests.known_callers import KnownCallers, until

CHAT = "/v1/chat/completions"
ALICE = {"Authorization": "alice"}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
# Of chat_body(): eight tokens for the turn, one for "Hi", and the default of an answer.
RESERVED = 8 + 1 + 1024
USED = 30 + 3  # what the scripted LLM tells
pytestmark = pytest.mark.timeout(30)


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.nanoseconds = 0

    def __call__(self) -> int:
        return self.nanoseconds


def known(
    monkeypatch: pytest.MonkeyPatch, clock: Clock | None = None, **policy: Any
) -> KnownCallers:
    return KnownCallers(monkeypatch, {"alice": Policy(**policy)}, clock or Clock())


async def post(gateway: Gateway, path: str, body: Any) -> tuple[int, Any, dict[str, str]]:
    async with gateway.http.post(path, json=body, headers=ALICE) as response:
        return response.status, await response.json(), dict(response.headers)


async def refusal(gateway: Gateway, path: str = CHAT, **body: Any) -> tuple[int, dict[str, Any]]:
    status, answer, _ = await post(gateway, path, chat_body(**body))
    return status, answer["error"]


async def test_every_answer_tells_how_far_the_limits_are(monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, requests_per_minute=60, tokens_per_minute=6000, images_per_minute=6)
    async with stack() as gateway:
        _, _, headers = await post(gateway, CHAT, chat_body())
        assert {name: headers[name] for name in headers if name.startswith("x-ratelimit")} == {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": "59",
            "x-ratelimit-reset-requests": "1s",
            "x-ratelimit-limit-tokens": "6000",
            "x-ratelimit-remaining-tokens": str(6000 - USED),
            "x-ratelimit-reset-tokens": "330ms",
            "x-ratelimit-limit-images": "6",
            "x-ratelimit-remaining-images": "6",
            "x-ratelimit-reset-images": "0s",
        }
        body = chat_body(stream=True)
        async with gateway.http.post(CHAT, json=body, headers=ALICE) as response:
            # Its head is written while it is under way: with what is reserved.
            remaining = response.headers["x-ratelimit-remaining-tokens"]
            assert remaining == str(6000 - USED - RESERVED)
        for path in ("/v1/models", "/v1/nowhere"):
            async with gateway.http.get(path, headers=ALICE) as response:
                assert response.headers["x-ratelimit-remaining-requests"] == "58"
        status, _, headers = await post(gateway, CHAT, {"messages": 1})
        assert (status, headers["x-ratelimit-remaining-requests"]) == (400, "57")


@pytest.mark.slow
async def test_a_connection_holds_nothing_of_a_request_that_is_over() -> None:
    """It waits for the next one, and the memory of the last one's text is no longer counted."""
    text = "held by nobody"
    async with stack() as gateway:
        assert (await gateway.chat(messages=[{"role": "user", "content": text}]))[0] == 200
        gc.collect()
        requests = [each for each in gc.get_objects() if isinstance(each, GenerationRequest)]
        assert not [each for each in requests if text in str(each.fields)]


async def test_whom_nobody_limits_is_told_nothing() -> None:
    async with (
        stack() as gateway,
        gateway.http.post(CHAT, json=chat_body(priority=-3)) as response,
    ):
        assert response.status == 200
        assert not [name for name in response.headers if "ratelimit" in name.lower()]


async def test_a_request_too_many_is_told_when_to_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, metrics = Clock(), Metrics()
    known(monkeypatch, clock, requests_per_minute=40)
    async with stack(metrics=metrics) as gateway:
        for _ in range(40):
            assert (await post(gateway, CHAT, chat_body()))[0] == 200
        with capture_logs() as events:
            status, body, headers = await post(gateway, CHAT, chat_body())
        counted = await scrape(metrics.registry, "internvl_gateway_")
        clock.nanoseconds += 1_500_000_000
        assert (await post(gateway, CHAT, chat_body()))[0] == 200
    assert status == 429
    assert body["error"] == {
        "message": "the key 'alice' may use 40 requests a minute, and 0 are left;"
        " this request takes 1, which it can in 1.5 s",
        "type": "rate_limit_error",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert (headers["Retry-After"], headers["retry-after-ms"]) == ("2", "1500")
    (line,) = [event for event in events if event["event"] == "request"]
    assert (line["error"], line["caller"]) == ("CALLER_REQUESTS", "alice")
    assert counted["refusals_total/CALLER_REQUESTS"] == 1
    assert counted["refusals_total/QUEUE_FULL"] == counted["refusals_total/CALLER_TOKENS"] == 0


async def test_anthropics_clients_are_told_in_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, requests_per_minute=1, tokens_per_minute=6000)
    question = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}
    async with stack() as gateway:
        status, _, headers = await post(gateway, "/v1/messages", question)
        assert (status, headers["anthropic-ratelimit-tokens-remaining"]) == (200, str(6000 - USED))
        assert not [name for name in headers if name.startswith("x-ratelimit")]
        status, body, headers = await post(gateway, "/v1/messages", question)
    assert (status, body["error"]["type"]) == (429, "rate_limit_error")
    assert headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert headers["Retry-After"] == "60"


async def test_a_refused_body_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    callers = known(monkeypatch, requests_per_minute=1)
    callers.accounts.of(callers.caller("alice")).use(requests=1)
    async with stack() as gateway:
        port = int(gateway.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\nExpect: 100-continue\r\n"
        writer.write(head.encode() + b"Authorization: alice\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 429")
        writer.close()
        await writer.wait_closed()


async def test_a_stream_has_its_slot_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    callers = known(monkeypatch, max_concurrent_request_count=1)
    account = callers.accounts.of(callers.caller("alice"))
    llm = ScriptedLLM(stalls=True)
    async with stack(llm=llm) as gateway:
        body = chat_body(stream=True)
        async with gateway.http.post(CHAT, json=body, headers=ALICE) as response:
            await happening(llm.stalled)
            status, error = await refusal(gateway)
            assert (status, error["code"]) == (429, "rate_limit_exceeded")
            assert "1 requests in flight" in error["message"]
            llm.released.set()
            assert (await response.read()).endswith(b"[DONE]\n\n")
        llm.released.clear()
        llm.stalled.clear()
        async with gateway.http.post(CHAT, json=body, headers=ALICE):
            await happening(llm.stalled)
        await happening(llm.cancelled)  # its client has gone
        await until(lambda: not account.in_flight_count)
        llm.stalls = False
        llm.failures = [ServiceError("x")]
        assert (await refusal(gateway))[0] == 500
        assert account.in_flight_count == 0


async def test_a_request_that_does_not_fit_any_minute_is_not_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known(monkeypatch, tokens_per_minute=1000)
    async with stack() as gateway, sdk(gateway) as client:
        status, body, headers = await post(gateway, CHAT, chat_body(max_tokens=992))
        assert (status, headers["x-should-retry"]) == (429, "false")
        assert "Retry-After" not in headers
        assert "the request is too large: it takes 1001 tokens" in body["error"]["message"]
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(**chat_body(max_tokens=992))
        assert (await post(gateway, CHAT, chat_body(max_tokens=991)))[0] == 200
    assert len(gateway.llm.starts) == 1


def sdk(gateway: Gateway, retries: int = 2) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="alice", max_retries=retries)


@pytest.mark.parametrize("maker", ["openai", "anthropic"])
async def test_the_official_clients_come_again_when_they_are_told_to(
    monkeypatch: pytest.MonkeyPatch, maker: str
) -> None:
    callers = KnownCallers(monkeypatch, {"alice": Policy(requests_per_minute=100)})
    metrics = Metrics()
    async with stack(metrics=metrics) as gateway:
        callers.accounts.of(callers.caller("alice")).use(requests=100)  # one comes back in 0.6 s
        if maker == "openai":
            async with sdk(gateway, retries=1) as client:
                await client.chat.completions.create(**chat_body())
        else:
            async with anthropic.AsyncAnthropic(
                base_url=gateway.url, api_key="alice", max_retries=1
            ) as other:
                await other.messages.create(**chat_body(), max_tokens=9)
        counted = await scrape(metrics.registry, "internvl_gateway_")
    # With the one retry that it had, it was let in: it cannot have come before the time.
    assert counted["refusals_total/CALLER_REQUESTS"] == 1
    assert len(gateway.llm.starts) == 1


async def test_a_key_reaches_its_models_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    callers = known(monkeypatch, models=(MODEL,))
    async with stack(llm=ScriptedLLM(aliases=["other"])) as gateway:
        assert (await post(gateway, CHAT, chat_body()))[0] == 200
        status, error = await refusal(gateway, model="other")
        assert (status, error["type"], error["code"]) == (403, "permission_error", "access_denied")
        assert (error["param"], error["message"]) == (
            "model",
            f"the key 'alice' may not use the model 'other'; it may use '{MODEL}'",
        )
        status, error = await refusal(gateway, model="")
        assert (status, error["param"]) == (403, "model")
        for path, body in (
            ("/tokenize", {"model": "other", "prompt": "x"}),
            ("/detokenize", {"model": "other", "tokens": [1]}),
            ("/v1/completions", {"model": "other", "prompt": "x"}),
            ("/v1/responses", {"model": "other", "input": "x"}),
            ("/v1/messages", chat_body(model="other", max_tokens=9)),
            ("/v1/messages/count_tokens", chat_body(model="other")),
        ):
            status, answer, _ = await post(gateway, path, body)
            assert (status, answer["error"]["type"]) == (403, "permission_error"), path
        async with gateway.http.get("/v1/models", headers=ALICE) as response:
            assert [model["id"] for model in (await response.json())["data"]] == [MODEL]
        async with gateway.http.get("/v1/models/other", headers=ALICE) as response:
            assert response.status == 403
        callers.policies["alice"] = Policy()
        assert (await post(gateway, CHAT, chat_body(model="other")))[0] == 200


@pytest.mark.parametrize(
    ("policy", "priority", "sentence"),
    [
        (Policy(), -1, "the priority is -1; the key 'alice' may give none"),
        (Policy(), 1, "the priority is 1; the key 'alice' may give none"),
        (
            Policy(may_use=["priority"], most_urgent_priority=-5),
            -6,
            "the priority is -6; the most urgent of the key 'alice' is -5",
        ),
        (Policy(may_use=["priority"], most_urgent_priority=-5), -5, ""),
        (Policy(may_use=["priority"]), 7, ""),
        (Policy(), 0, ""),
    ],
)
async def test_a_priority_needs_permission_and_has_a_ceiling(
    monkeypatch: pytest.MonkeyPatch, policy: Policy, priority: int, sentence: str
) -> None:
    KnownCallers(monkeypatch, {"alice": policy})
    async with stack() as gateway:
        for path, more in (
            (CHAT, {"messages": chat_body()["messages"]}),
            ("/v1/messages", {"messages": chat_body()["messages"], "max_tokens": 9}),
            ("/v1/responses", {"input": "x"}),
            ("/v1/completions", {"prompt": "x"}),
        ):
            body = {"model": MODEL, "priority": priority, **more}
            status, answer, _ = await post(gateway, path, body)
            if not sentence:
                assert status == 200
                continue
            assert status == 403
            assert sentence in answer["error"]["message"]
            assert answer["error"].get("param", "priority") == "priority"
        assert bool(gateway.llm.starts) is not bool(sentence)


async def test_a_file_needs_permission_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    callers = known(monkeypatch)
    picture = tmp_path / "cat.png"
    picture.write_bytes(b"a cat")

    def asking(prefix: str = "") -> dict[str, Any]:
        url = f"{prefix}{picture.as_uri()}"
        return {"messages": [{"role": "user", "content": [PICTURE, image(url)]}]}

    def image(url: str) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": url}}

    async with stack(file_root=(tmp_path,)) as gateway:
        for prefix in ("", "\n\t ", " " * 2000):
            status, error = await refusal(gateway, **asking(prefix))
            assert (status, error["param"]) == (403, "messages[0].content[1].image_url.url")
            assert "may not use" in error["message"]
        assert not gateway.vision.requests
        status, _, _ = await post(gateway, "/tokenize", {"model": MODEL, **asking()})
        assert status == 403
        callers.policies["alice"] = Policy(may_use=["file"])
        assert (await post(gateway, CHAT, chat_body(**asking())))[0] == 200


async def test_images_are_counted_wherever_they_are_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known(monkeypatch, images_per_minute=5)
    messages = [{"role": "user", "content": [PICTURE, PICTURE]}]
    async with stack() as gateway:
        for path, remaining in ((CHAT, "3"), ("/tokenize", "1")):
            status, _, headers = await post(gateway, path, {"model": MODEL, "messages": messages})
            assert (status, headers["x-ratelimit-remaining-images"]) == (200, remaining)
        status, error = await refusal(gateway, messages=messages)
        assert (status, error["message"]) == (
            429,
            "the key 'alice' may use 5 images a minute, and 1 are left; this request takes 2,"
            " which it can in 12 s",
        )


async def test_all_that_works_counts_as_a_request_and_generations_take_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    callers = known(monkeypatch, requests_per_minute=100, tokens_per_minute=10**6)
    account = callers.accounts.of(callers.caller("alice"))
    async with stack() as gateway:
        for path, body in (
            ("/tokenize", {"prompt": "x"}),
            ("/detokenize", {"tokens": [1]}),
            ("/v1/messages/count_tokens", chat_body()),
        ):
            assert (await post(gateway, path, body))[0] == 200
        async with gateway.http.get("/v1/tiles?width=9&height=9", headers=ALICE) as response:
            assert response.status == 200
        requests, tokens = account.rates()
        assert (requests.remaining, tokens.remaining) == (96, 10**6)
        for path in ("/v1/models", "/v1/status", "/load", "/version", "/health"):
            async with gateway.http.get(path, headers=ALICE) as response:
                assert response.status == 200
        assert account.rates() == [requests, tokens]


@pytest.mark.parametrize(
    ("body", "used"),
    [
        (chat_body(n=3), 30 + 9),
        (chat_body(messages=[{"role": "user", "content": [PICTURE]}]), 30 + 256 + 3),
    ],
)
async def test_what_was_used_is_counted_in_the_end(
    monkeypatch: pytest.MonkeyPatch, body: dict[str, Any], used: int
) -> None:
    known(monkeypatch, tokens_per_minute=100_000)
    async with stack() as gateway:
        _, _, headers = await post(gateway, CHAT, body)
    assert headers["x-ratelimit-remaining-tokens"] == str(100_000 - used)


@pytest.mark.parametrize(
    ("llm", "used"),
    [
        (ScriptedLLM(failures=[InvalidArgumentError("x")]), 0),
        (ScriptedLLM(late_failure=ServiceError("x")), USED),
    ],
)
async def test_a_failure_costs_what_was_told_before_it(
    monkeypatch: pytest.MonkeyPatch, llm: ScriptedLLM, used: int
) -> None:
    known(monkeypatch, tokens_per_minute=5000)
    async with stack(llm=llm) as gateway:
        status, _, headers = await post(gateway, CHAT, chat_body())
    assert status in (400, 500)
    assert headers["x-ratelimit-remaining-tokens"] == str(5000 - used)


@pytest.mark.parametrize(
    ("vision", "used"), [(ScriptedVision(), 30 + 256 + 3), (ScriptedVision(stalls=True), 0)]
)
async def test_what_a_client_leaves_behind_is_counted(
    monkeypatch: pytest.MonkeyPatch, vision: ScriptedVision, used: int
) -> None:
    """A client that goes before the prompt's length is told pays for the estimate of it."""
    callers = known(monkeypatch, tokens_per_minute=20_000)
    account = callers.accounts.of(callers.caller("alice"))
    llm = ScriptedLLM(stalls=True)
    body = chat_body(messages=[{"role": "user", "content": [PICTURE]}], stream=True)
    async with stack(vision, llm) as gateway:
        asking = asyncio.create_task(gateway.http.post(CHAT, json=body, headers=ALICE))
        if vision.stalls:
            await happening(vision.stalled)
            asking.cancel()
        else:
            response = await asking
            while b'"lo"' not in await response.content.readline():
                pass
            response.close()
        await until(lambda: not account.in_flight_count)
    (tokens,) = account.rates()
    assert tokens.remaining == 20_000 - (used or 8 + 13 * 256)


async def test_a_gateways_share_is_what_its_callers_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known(monkeypatch, requests_per_minute=10)
    async with stack(gateway_count="4") as gateway:
        for remaining in ("2", "1", "0"):
            _, _, headers = await post(gateway, CHAT, chat_body())
            assert headers["x-ratelimit-limit-requests"] == "3"
            assert headers["x-ratelimit-remaining-requests"] == remaining
        status, error = await refusal(gateway)
    assert status == 429
    assert "may use 3 requests a minute at each of 4 gateways" in error["message"]


async def test_a_stream_that_fails_is_settled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    callers = known(monkeypatch, tokens_per_minute=5000)
    account = callers.accounts.of(callers.caller("alice"))
    async with stack(llm=ScriptedLLM(late_failure=ServiceError("x"))) as gateway:
        body = chat_body(stream=True)
        async with gateway.http.post(CHAT, json=body, headers=ALICE) as response:
            events = (await response.text()).split("\n\n")
    assert "error" in json.loads(events[-2].removeprefix("data: "))
    assert account.rates()[0].remaining == 5000 - USED
