"""Traces of the three real processes: what the catalog has of the services, and their clocks."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from gateway.local.stack import Stack
from models.demo import DEMO_CHECKPOINT
from tests.served_model import SERVICE_ARGUMENTS
from tests.server_timings import told
from tests.traces.catalog import catalog, check, check_points, untold
from tests.traces.receiver import Receiver, receiving
from tests.unit.vision_service.fakes import encoded, picture

CHAT = "/v1/chat/completions"
HTTP_SPAN = f"POST {CHAT}"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CALLER_SPAN_ID = "b7ad6b7169203331"
CANARY = "canary-c0ffee"
# By the stages of Server-Timing that are the services' own clocks.
STAGES = {
    "preprocess": "vision preprocess",
    "queue": "vision queue",
    "forward": "vision vit",
    "llm_queue": "llm queue",
    "llm_prefill": "llm prefill",
}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with pytest.MonkeyPatch.context() as patch, receiving() as receiver:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        patch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "500")
        yield receiver


@pytest.fixture(scope="module")
def stack(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    option = f"--otlp-endpoint={receiver.endpoint}"
    with Stack(
        DEMO_CHECKPOINT,
        tmp_path_factory.mktemp("traced"),
        service_arguments=[*SERVICE_ARGUMENTS, option],
        gateway_arguments=[option],
    ) as stack:
        yield stack


def body(*parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    text = {"type": "text", "text": f"What is {CANARY}?"}
    return {"messages": [{"role": "user", "content": [*parts, text]}], "max_tokens": 4} | fields


def image(content: bytes) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(content).decode()
    return {"type": "image_url", "image_url": {"url": url}}


@pytest.mark.slow
async def test_the_services_spans_are_those_of_server_timing(
    stack: Stack, receiver: Receiver
) -> None:
    headers = {
        "x-internvl-server-timing": "1",
        "traceparent": f"00-{TRACE_ID}-{CALLER_SPAN_ID}-01",
    }
    new = image(encoded(picture(900, 450, seed=1)))
    async with (
        aiohttp.ClientSession(stack.url) as http,
        http.post(CHAT, json=body(new), headers=headers) as response,
    ):
        assert response.status == 200, await response.text()
        stages = told(response.headers["Server-Timing"]).stages
    await asyncio.gather(*(receiver.wait_for(name) for name in (HTTP_SPAN, *STAGES.values())))
    spans = {span.name: span for span in receiver.trace(TRACE_ID)}
    for stage, name in STAGES.items():
        # Server-Timing has a place behind the comma, of milliseconds.
        assert spans[name].seconds * 1000 == pytest.approx(stages[stage], abs=0.06), stage
    processes = {catalog().entry(span)["process"]: span.process for span in spans.values()}
    assert processes == {name: name for name in ("gateway", "vision", "llm")}


@pytest.mark.slow
async def test_all_that_the_catalog_has_of_the_services_is_told(
    stack: Stack, receiver: Receiver
) -> None:
    new = image(encoded(picture(64, 64, seed=2)))
    choice = {"guided_choice": ["cat", "dog"]}
    async with aiohttp.ClientSession(stack.url) as http:

        async def ask(path: str, content: dict[str, Any], status: int) -> None:
            async with http.post(path, json=content) as response:
                assert response.status == status, await response.text()

        await ask(CHAT, body(new, **choice), 200)
        await ask(CHAT, body(image(b"\x89PNG\r\n\x1a\n" + bytes(64))), 400)
        await ask(CHAT, body(new, logit_bias={"99999999": 1}), 400)
        await ask("/tokenize", {"prompt": CANARY}, 200)
        await ask("/detokenize", {"tokens": [99_999_999]}, 400)
    await receiver.wait_for("POST /detokenize")
    await receiver.wait_for("internvl.v1.LLMService/Detokenize")
    await asyncio.sleep(1.0)  # the other processes' last batches
    check(receiver.spans, [CALLER_SPAN_ID])
    check_points(receiver.points)
    assert untold(receiver.spans, "vision") == set()
    assert untold(receiver.spans, "llm") == set()
    assert untold(receiver.spans, "vision or llm") == set()
    assert CANARY.encode() not in b"".join(receiver.raw)
