"""What the gateway exports of requests to a collector, in front of scripted services."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

import pytest

from gateway.traces import HISTOGRAMS
from protos.errors import (
    InvalidImageError,
    ModelMismatchError,
    OverloadedError,
    ServiceError,
    UnavailableError,
)
from protos.process import logs, tracing
from tests.fakes import MODEL, Gateway, ScriptedLLM, ScriptedVision, chat_body, stack
from tests.integration.test_gateway_metrics import about
from tests.server_timings import told
from tests.traces.catalog import catalog, check, check_points, untold
from tests.traces.receiver import Receiver, Span, receiving

CHAT = "/v1/chat/completions"
HTTP_SPAN = f"POST {CHAT}"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CALLER_SPAN_ID = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{CALLER_SPAN_ID}-01"
# In seconds: between two readings of a clock, other processes may have the cores.
NEAR = 0.04
CANARY = "canary-c0ffee"
TEXT_BYTE_COUNT = 10_000
# Of a request: all that its span has an attribute for.
OPTIONS = {
    "max_tokens": 7,
    "temperature": 0.5,
    "top_p": 0.25,
    "top_k": 3,
    "seed": 11,
    "frequency_penalty": 0.125,
    "presence_penalty": -0.5,
    "n": 2,
    "stream": True,
}


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A collector that this process exports to, as the gateway does."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")  # is put back
    with receiving() as receiver:
        with tracing.exporting("internvl-gateway", receiver.endpoint, HISTOGRAMS):
            yield receiver
        assert receiver.spans
        check(receiver.spans, [CALLER_SPAN_ID])
        check_points(receiver.points)


def names(spans: list[Span]) -> dict[str, str]:
    """Returns the parent's name of each span of a trace by its own name."""
    by_id = {span.span_id: span.name for span in spans}
    return {span.name: by_id.get(span.parent_id, "") for span in spans}


async def trace_of(receiver: Receiver, gateway: Gateway, **fields: Any) -> list[Span]:
    """Returns the gateway's spans of a chat request, whose caller has a trace."""
    async with gateway.http.post(
        CHAT, json=chat_body(**fields), headers={"traceparent": TRACEPARENT}
    ) as response:
        await response.read()
    await receiver.wait_for(HTTP_SPAN)
    spans = receiver.trace(TRACE_ID)
    return [span for span in spans if catalog().entry(span)["process"] == "gateway"]


def one(spans: list[Span], name: str) -> Span:
    (found,) = [span for span in spans if span.name == name]
    return found


async def test_a_request_is_one_tree_below_its_callers_span(receiver: Receiver) -> None:
    async with stack() as gateway:
        spans = await trace_of(receiver, gateway, **about(b"cat", b"dog"))
        assert (gateway.vision.requests, len(gateway.llm.starts)) != ([], 0)
    assert names(spans) == {
        HTTP_SPAN: "",
        "body": HTTP_SPAN,
        "gateway chat": HTTP_SPAN,
        "fetch": "gateway chat",
        "llm generate": "gateway chat",
        "vision encode": "llm generate",
    }
    assert len(spans) == 8
    assert one(spans, HTTP_SPAN).parent_id == CALLER_SPAN_ID
    assert {span.trace_id for span in receiver.spans} == {TRACE_ID}


async def test_what_is_asked_and_answered_has_the_conventions_names(receiver: Receiver) -> None:
    asked = {**OPTIONS, "response_format": {"type": "json_object"}}
    async with stack(ScriptedVision(cache_hit=True)) as gateway:
        spans = await trace_of(receiver, gateway, **asked, **about(b"cat", b"dog", b"cat"))
    chat, http = one(spans, "gateway chat").attributes, one(spans, HTTP_SPAN).attributes
    request_id = http.pop("internvl.request_id")
    port = http.pop("server.port")
    assert http == {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "url.scheme": "http",
        "server.address": "127.0.0.1",
        "internvl.caller": "anybody",
    }
    seconds = chat.pop("gen_ai.response.time_to_first_chunk")
    assert 0 < seconds < one(spans, HTTP_SPAN).seconds
    assert chat == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "internvl",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.max_tokens": 7,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.25,
        "gen_ai.request.top_k": 3,
        "gen_ai.request.seed": 11,
        "gen_ai.request.frequency_penalty": 0.125,
        "gen_ai.request.presence_penalty": -0.5,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.stream": True,
        "gen_ai.output.type": "json",
        "gen_ai.response.id": f"chatcmpl-{request_id}",
        "gen_ai.response.model": MODEL,
        "gen_ai.response.finish_reasons": ["stop", "stop"],
        "gen_ai.usage.input_tokens": 30 + 3 * 256,
        "gen_ai.usage.output_tokens": 2 * len(ScriptedLLM().texts),
        "gen_ai.usage.cache_read.input_tokens": 16,
        "gen_ai.usage.image.input_tokens": 3 * 256,
        "gen_ai.usage.text.input_tokens": 30,
        "internvl.image_count": 3,
        "internvl.reused_image_count": 1,
        "internvl.cached_image_count": 2,
        "internvl.encoded_image_count": 0,
        "internvl.encoded_tile_count": 0,
    }
    assert gateway.url.endswith(f":{port}")


@pytest.mark.parametrize(
    ("path", "body", "operation"),
    [
        (CHAT, chat_body(), "chat"),
        (
            "/v1/completions",
            {"model": "", "prompt": ["a", "b"], "max_tokens": 2},
            "text_completion",
        ),
        ("/v1/responses", {"model": MODEL, "input": "Hi"}, "chat"),
        ("/v1/messages", {**chat_body(), "max_tokens": 2}, "chat"),
    ],
)
async def test_an_answers_id_is_that_of_its_span(
    receiver: Receiver, path: str, body: dict[str, Any], operation: str
) -> None:
    async with stack() as gateway, gateway.http.post(path, json=body) as response:
        answer = await response.json()
    (span,) = await receiver.wait_for(f"gateway {operation}")
    assert span.attributes["gen_ai.response.id"] == answer["id"]
    calls = await receiver.wait_for("llm generate", 1 + (path == "/v1/completions"))
    assert {call.parent_id for call in calls} == {span.span_id}


async def slowly(body: bytes) -> AsyncIterator[bytes]:
    yield body[:10]
    await asyncio.sleep(4 * NEAR)
    yield body[10:]


async def release(llm: ScriptedLLM) -> None:
    """Lets an answer end some time after it began."""
    await llm.stalled.wait()
    await asyncio.sleep(2 * NEAR)
    llm.released.set()


async def test_server_timing_says_what_the_spans_say(receiver: Receiver) -> None:
    headers = {"x-internvl-server-timing": "1", "traceparent": TRACEPARENT}
    vision = ScriptedVision(chunk_byte_count=80, failures=[UnavailableError("gone")])
    llm = ScriptedLLM(reading_seconds=0.05, stalls=True)
    releasing = asyncio.create_task(release(llm))
    body = json.dumps(chat_body(**about(b"cat", b"dog"))).encode()
    async with (
        stack(vision, llm) as gateway,
        gateway.http.post(CHAT, data=slowly(body), headers=headers) as response,
    ):
        stages = told(response.headers["Server-Timing"]).stages
        await releasing
        await receiver.wait_for(HTTP_SPAN)
    spans = receiver.trace(TRACE_ID)
    http, call = one(spans, HTTP_SPAN), one(spans, "llm generate")
    fetches, encodes = (
        [span for span in spans if span.name == name] for name in ("fetch", "vision encode")
    )
    last_header = max(span.moment("header") for span in encodes)
    handed = max(span.end for span in encodes)
    by_spans = {
        "body": one(spans, "body").seconds,
        "fetch": max(span.end for span in fetches) - fetches[0].start,
        "encode_wait": last_header - encodes[0].start,
        "transfer": handed - last_header,
        "prefill": call.moment("first_token") - handed,
        "first_token": call.moment("first_token") - http.start,
        "decode": call.end - call.moment("first_token"),
        "total": http.seconds,
    }
    of_vision = ("preprocess", "queue", "forward")
    assert {*stages} == {*by_spans, *of_vision}
    for stage in ("body", "encode_wait", "prefill", "decode"):
        assert stages[stage] > 1000 * NEAR, f"{stage} is too short to compare"
    for stage, seconds in by_spans.items():
        assert stages[stage] / 1000 == pytest.approx(seconds, abs=NEAR), stage


@pytest.mark.parametrize(
    "traceparent",
    ["", "00", CANARY, f"00-{'0' * 32}-{CALLER_SPAN_ID}-01", f"ff-{TRACE_ID}-{CALLER_SPAN_ID}-01"],
)
async def test_a_malformed_context_begins_a_trace(receiver: Receiver, traceparent: str) -> None:
    headers = {"traceparent": traceparent, "tracestate": CANARY, "baggage": f"a={CANARY}"}
    async with (
        stack() as gateway,
        gateway.http.post(CHAT, json=chat_body(), headers=headers) as response,
    ):
        assert response.status == 200
    (http,) = await receiver.wait_for(HTTP_SPAN)
    assert http.parent_id == ""
    assert http.trace_id not in (TRACE_ID, "0" * 32)
    assert CANARY.encode() not in b"".join(receiver.raw)


async def test_a_caller_that_is_not_sampled_leaves_no_spans(receiver: Receiver) -> None:
    """OTEL_TRACES_SAMPLER is parentbased_always_on unless it says otherwise."""
    async with stack() as gateway:
        unsampled = {"traceparent": TRACEPARENT[:-1] + "0"}
        async with gateway.http.post(CHAT, json=chat_body(), headers=unsampled) as response:
            assert response.status == 200
        await gateway.chat()
    (http,) = await receiver.wait_for(HTTP_SPAN)
    assert http.trace_id != TRACE_ID
    assert {span.trace_id for span in receiver.spans} == {http.trace_id}


async def test_who_has_no_key_makes_no_span_and_no_key_is_told(receiver: Receiver) -> None:
    headers = {"traceparent": TRACEPARENT, "Authorization": f"Bearer {CANARY}-of-a-wrong-key"}
    async with stack(api_key=f"{CANARY}-of-the-right-key") as gateway:
        async with gateway.http.post(CHAT, json=chat_body(), headers=headers) as response:
            assert response.status == 401
        headers["Authorization"] = f"Bearer {CANARY}-of-the-right-key"
        async with gateway.http.post(CHAT, json=chat_body(), headers=headers) as response:
            assert response.status == 200
    (http,) = await receiver.wait_for(HTTP_SPAN)
    assert http.attributes["internvl.caller"] not in ("anybody", "")
    assert CANARY.encode() not in b"".join(receiver.raw)


async def test_what_everybody_asks_for_all_the_time_has_no_span(receiver: Receiver) -> None:
    async with stack() as gateway:
        for path in ("/", "/health/ready", "/v1/status", "/openapi.json", "/unknown", f"/{CANARY}"):
            async with gateway.http.get(path) as response:
                await response.read()
        await gateway.get("/v1/models")
        await gateway.get(f"/v1/models/{CANARY}")
    await receiver.wait_for("GET /v1/models/{id}")
    assert {span.name for span in receiver.spans} == {"GET /v1/models", "GET /v1/models/{id}"}
    assert CANARY.encode() not in b"".join(receiver.raw)


async def test_a_refusal_is_told_by_its_reason(receiver: Receiver) -> None:
    async with stack() as gateway:
        status, _ = await gateway.chat(temperature=f"hot {CANARY}")
        assert status == 400
    (http,) = await receiver.wait_for(HTTP_SPAN)
    assert http.attributes["error.type"] == "INVALID_FIELD"
    assert not http.is_failed, "the client's fault, by HTTP's conventions"
    assert CANARY.encode() not in b"".join(receiver.raw)


async def test_a_failure_is_told_at_each_span_that_it_ends(receiver: Receiver) -> None:
    vision = ScriptedVision(failures=[InvalidImageError(f"not a picture: {CANARY}")])
    async with stack(vision) as gateway:
        spans = await trace_of(receiver, gateway, **about(b"cat"))
    failed = {span.name: span.attributes["error.type"] for span in spans if span.is_failed}
    assert failed == dict.fromkeys(
        ("gateway chat", "llm generate", "vision encode"), "INVALID_IMAGE"
    )
    assert CANARY.encode() not in b"".join(receiver.raw)


async def test_a_stream_that_breaks_off_is_a_failure(receiver: Receiver) -> None:
    async with stack(llm=ScriptedLLM(late_failure=ServiceError("broken"))) as gateway:
        spans = await trace_of(receiver, gateway, stream=True)
    failed = {span.name for span in spans if span.is_failed}
    assert failed == {HTTP_SPAN, "gateway chat", "llm generate"}
    assert one(spans, HTTP_SPAN).attributes["http.response.status_code"] == 200


async def test_a_further_attempt_is_told(receiver: Receiver) -> None:
    failures: list[ServiceError] = [UnavailableError("gone"), OverloadedError("full")]
    async with stack(ScriptedVision(failures=failures)) as gateway:
        spans = await trace_of(receiver, gateway, **about(b"cat"))
    events = [(event.name, event.attributes) for event in one(spans, "vision encode").events]
    assert events == [
        ("retry", {"internvl.attempt": 2, "internvl.reason": "SERVICE_UNAVAILABLE"}),
        ("retry", {"internvl.attempt": 3, "internvl.reason": "QUEUE_FULL"}),
        ("header", {}),
    ]
    assert not any(span.is_failed for span in spans)


async def test_a_call_at_another_model_is_told(receiver: Receiver) -> None:
    llm = ScriptedLLM(failures=[ModelMismatchError("another one")])
    async with stack(llm=llm) as gateway:
        spans = await trace_of(receiver, gateway, **about(b"cat"))
    calls = [span for span in spans if span.name == "llm generate"]
    assert [call.attributes.get("error.type") for call in calls] == ["MODEL_MISMATCH", None]
    (encode,) = [span for span in spans if span.name == "vision encode"]
    assert encode.parent_id == calls[1].span_id


async def test_no_content_leaves(receiver: Receiver) -> None:
    url = "data:image/png;base64," + base64.b64encode(CANARY.encode()).decode()
    text = {"type": "text", "text": CANARY}
    picture = {"type": "image_url", "image_url": {"url": url}}
    llm = ScriptedLLM(texts=[CANARY, f"{CANARY}!"])
    async with stack(llm=llm) as gateway:
        status, _ = await gateway.chat(
            messages=[
                {"role": "system", "content": CANARY},
                {"role": "user", "content": [text, picture]},
            ],
            stop=[f"stop {CANARY}"],
            user=CANARY,
            metadata={"a": CANARY},
            cache_salt=CANARY,
        )
        assert status == 200
        bad = {"type": "image_url", "image_url": {"url": f"{CANARY}://{CANARY}/{CANARY}"}}
        assert (await gateway.chat(messages=[{"role": "user", "content": [bad]}]))[0] == 400
    await receiver.wait_for(HTTP_SPAN, 2)
    sent = b"".join(receiver.raw)
    assert CANARY.encode() not in sent
    assert url[-12:].encode() not in sent


async def test_a_cancelled_request_is_told(receiver: Receiver) -> None:
    llm = ScriptedLLM(stalls=True)
    async with stack(llm=llm) as gateway:
        async with gateway.http.post(CHAT, json=chat_body(stream=True)) as response:
            await llm.stalled.wait()
            response.close()
        (http,) = await receiver.wait_for(HTTP_SPAN)
    assert http.attributes["error.type"] == "CANCELLED"
    (chat,) = receiver.named("gateway chat")
    assert chat.attributes["error.type"] == "CANCELLED"
    (point,) = await receiver.wait_for_points(1)
    assert point.attributes["server.address"] == "127.0.0.1", "though the connection is gone"


async def test_a_call_that_another_task_ends_is_no_trouble(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")  # is put back
    logs.configure("info", "json")

    async def call() -> AsyncGenerator[int, None]:
        with tracing.continued([]), tracing.span("body"):
            yield 1

    with receiving() as receiver, tracing.exporting("internvl-gateway", receiver.endpoint):
        answers = call()
        await anext(answers)
        await asyncio.create_task(answers.aclose())
    assert receiver.named("body")
    assert "telemetry_failed" not in capsys.readouterr().err


async def test_the_histograms_count_requests(receiver: Receiver) -> None:
    async with stack(llm=ScriptedLLM(texts=["a"] * 5)) as gateway:
        for _ in range(3):
            assert (await gateway.chat())[0] == 200
        assert (await gateway.chat(model=CANARY))[0] == 404
        await receiver.wait_for(HTTP_SPAN, 4)
        points = await receiver.wait_for_points(4)
    common = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "internvl",
        "server.address": "127.0.0.1",
        "server.port": int(gateway.url.rpartition(":")[2]),
    }
    served = common | {"gen_ai.request.model": MODEL, "gen_ai.response.model": MODEL}
    found = {(point.metric, json.dumps(point.attributes, sort_keys=True)) for point in points}
    assert found == {
        *((name, json.dumps(served, sort_keys=True)) for name in HISTOGRAMS),
        (
            "gen_ai.server.request.duration",
            json.dumps(common | {"error.type": "NOT_FOUND"}, sort_keys=True),
        ),
    }
    assert sorted(point.count for point in points) == [1, 3, 3, 3]
    by_name = {point.metric: point for point in points if point.count == 3}
    assert {name: tuple(point.bounds) for name, point in by_name.items()} == HISTOGRAMS
    total, first, later = (by_name[name].sum for name in HISTOGRAMS)
    assert 0 < 4 * later < total
    assert first < total


async def test_log_lines_have_the_traces_id(
    receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("info", "json")
    async with stack() as gateway:
        await trace_of(receiver, gateway)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    told = [line["trace_id"] for line in lines if line["event"] == "request"]
    assert told == [TRACE_ID] * 2, "the gateway's and the LLM service's"


async def test_all_that_the_catalog_has_is_told(receiver: Receiver) -> None:
    """The tests above show what it is; this, that no name stands in the catalog for nothing."""
    vision = ScriptedVision(failures=[OverloadedError("full"), OverloadedError("full")])
    failures: list[ServiceError] = [UnavailableError("gone"), ServiceError("broken")]
    llm = ScriptedLLM(failures=failures)
    async with stack(vision, llm, max_text_byte_count=TEXT_BYTE_COUNT) as gateway:
        await gateway.read_chat(**OPTIONS, **about(b"cat"))
        await gateway.read_chat(**OPTIONS, **about(b"cat"))
        vision.failures.append(InvalidImageError("bad"))
        await gateway.read_chat(**about(b"dog"))
        bad = {"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}}
        await gateway.chat(messages=[{"role": "user", "content": [bad]}])
        await gateway.chat(user="x" * TEXT_BYTE_COUNT)
        await receiver.wait_for(HTTP_SPAN, 5)
    assert untold(receiver.spans, "gateway") == set()


def test_a_dead_collector_is_told_of_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "20")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    # The thread that exports ends in this test, and disturbs no other one.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    logs.configure("info", "json")
    handlers = logging.getLogger("opentelemetry").handlers[:]
    with tracing.exporting("internvl-gateway", "http://127.0.0.1:9"):
        for _ in range(200):
            with tracing.span("body"):
                pass
    events = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert events.count("telemetry_failed") == 1
    assert set(events) <= {"telemetry_failed", "telemetry_lost"}
    assert logging.getLogger("opentelemetry").handlers == handlers
