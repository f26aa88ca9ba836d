"""What Prometheus, and the log's line, are told of chat requests over HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from gateway.app import create_app
from gateway.app_keys import METRICS
from gateway.local.ports import free_port
from gateway.metrics import Metrics
from gateway.record import STAGES
from gateway.settings import Settings
from protos.errors import OverloadedError, ServiceError
from tests.fakes import ScriptedLLM, ScriptedVision, chat_body, happening, stack
from tests.integration.test_gateway_process import failed_start, running_process
from tests.request_lines import gateway_lines

CHAT = "/v1/chat/completions"
PREFIX = "internvl_gateway_"


def values(page: str) -> dict[str, float]:
    """Returns a page's values by name, without the prefix, and labels: "tokens_total/prompt"."""
    return {
        "/".join([sample.name.removeprefix(PREFIX), *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def read(metrics: Metrics) -> dict[str, float]:
    return values(generate_latest(metrics.registry).decode())


def about(*images: bytes, **fields: Any) -> dict[str, Any]:
    """Returns the fields of a request about pictures."""
    urls = ["data:image/png;base64," + base64.b64encode(image).decode() for image in images]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"messages": [{"role": "user", "content": parts}], **fields}


def request_line(events: list[Any]) -> dict[str, Any]:
    (line,) = gateway_lines(events)
    return dict(line)


async def test_where_the_images_came_from_and_the_tokens_are_counted() -> None:
    metrics, vision = Metrics(), ScriptedVision()
    async with stack(vision, metrics=metrics) as gateway:
        before = read(metrics)
        assert {(await gateway.chat(**about(b"cat", b"dog")))[0] for _ in range(2)} == {200}
        vision.cache_hit = True
        await gateway.read_chat(**about(b"cat", b"fox", stream=True))
        after = read(metrics)
    sources = ("llm", "vision_cache", "encoded")
    assert [before[f"images_total/{source}"] for source in sources] == [0, 0, 0]
    assert [after[f"images_total/{source}"] for source in sources] == [3, 1, 2]
    kinds = ("prompt", "image", "cached", "output")
    assert [before[f"tokens_total/{kind}"] for kind in kinds] == [0, 0, 0, 0]
    assert [after[f"tokens_total/{kind}"] for kind in kinds] == [3 * 542, 3 * 512, 3 * 16, 3 * 3]
    assert after[f"request_seconds_count/{CHAT}/200"] == 3


async def test_stages_are_told_by_the_log_and_by_the_metrics() -> None:
    metrics, vision = Metrics(), ScriptedVision(together_count=2)
    async with stack(vision, metrics=metrics) as gateway:
        with capture_logs() as events:
            task = asyncio.create_task(gateway.chat(**about(b"cat")))
            while not vision.requests:  # noqa: ASYNC110 - the fake tells nobody
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            vision.together.set()
            assert (await task)[0] == 200
        counted = read(metrics)
    line = request_line(events)
    seconds = {stage: line[f"{stage}_seconds"] for stage in STAGES}
    for stage in STAGES:
        assert counted[f"stage_seconds_count/{stage}"] == 1
        assert counted[f"stage_seconds_sum/{stage}"] == seconds[stage]
    assert seconds["encode_wait"] >= 0.2
    assert min(seconds.values()) >= 0
    parts = sum(seconds[stage] for stage in STAGES if stage not in ("first_token", "decode"))
    assert parts <= seconds["first_token"]
    assert seconds["first_token"] + seconds["decode"] <= line["total_seconds"]


async def test_a_request_of_text_has_no_stages_of_images() -> None:
    metrics = Metrics()
    async with stack(metrics=metrics) as gateway:
        with capture_logs() as events:
            await gateway.chat()
        await gateway.get("/health/live")
        counted = read(metrics)
    found = {stage for stage in STAGES if counted[f"stage_seconds_count/{stage}"]}
    assert found == {"body", "prefill", "first_token", "decode"}
    line = request_line([event for event in events if event.get("route") == CHAT])
    assert (line["fetch_seconds"], line["encode_wait_seconds"]) == (None, None)
    assert line["first_token_seconds"] > 0


async def test_the_line_of_a_request_that_waited_in_vain_says_for_what() -> None:
    metrics, vision = Metrics(), ScriptedVision()
    async with stack(vision, metrics=metrics, request_seconds=1) as gateway:
        assert (await gateway.chat(**about(b"dog")))[0] == 200
        vision.together, vision.together_count = asyncio.Event(), 9
        with capture_logs() as events:
            assert (await gateway.chat(**about(b"cat")))[0] == 504
    line = request_line(events)
    assert line["error"] == "DEADLINE_EXCEEDED"
    assert line["encode_wait_seconds"] > 0
    assert (line["image_count"], line["encoded_image_count"]) == (1, 0)
    assert line["transfer_seconds"] is line["first_token_seconds"] is None
    counted = read(metrics)
    assert counted["refusals_total/DEADLINE_EXCEEDED"] == 1
    assert counted["images_total/llm"] == 0


async def test_refusals_are_counted_by_reason_even_within_a_stream() -> None:
    metrics = Metrics()
    llm = ScriptedLLM(failures=[OverloadedError("full")] * 9)
    async with stack(llm=llm, metrics=metrics) as gateway:
        assert read(metrics)["refusals_total/QUEUE_FULL"] == 0
        assert (await gateway.chat())[0] == 429
        offer_count = len(llm.starts)
        llm.failures.clear()
        llm.late_failure = ServiceError("broken")
        assert b"broken" in await gateway.read_chat(stream=True)
        counted = read(metrics)
    assert counted["refusals_total/QUEUE_FULL"] == counted["refusals_total/INTERNAL"] == 1
    assert counted["attempts_total/QUEUE_FULL/llm"] == offer_count - 1 > 0
    assert counted["attempts_total/QUEUE_FULL/vision"] == 0
    assert counted[f"request_seconds_count/{CHAT}/429"] == 1
    assert counted[f"request_seconds_count/{CHAT}/200"] == 1


async def test_a_client_that_goes_away_is_499_and_a_request_in_flight_is_seen() -> None:
    metrics, llm = Metrics(), ScriptedLLM(stalls=True)
    text = "x" * 100_000
    body = chat_body(stream=True, messages=[{"role": "user", "content": text}])
    async with stack(llm=llm, metrics=metrics) as gateway:
        async with gateway.http.post(CHAT, json=body) as response:
            await happening(llm.stalled)
            during = read(metrics)
            response.close()
        await happening(llm.cancelled)
        await asyncio.sleep(0.05)
        after = read(metrics)
    assert (during["requests"], during["connections"]) == (1, 1)
    assert 30_000 < during["held_bytes"] < 500_000  # without the first 64 KiB
    assert (after["requests"], after["held_bytes"]) == (0, 0)
    assert after[f"request_seconds_count/{CHAT}/499"] == 1
    assert f"request_seconds_count/{CHAT}/200" not in after


async def test_no_label_holds_what_a_client_typed() -> None:
    metrics = Metrics()
    async with stack(metrics=metrics) as gateway:
        for path in ("/secret", "/v1/models/secret", "/v1/models/secret?key=secret"):
            async with gateway.http.get(path) as response:
                assert response.status == 404
        await gateway.chat(model="secret", secret=1)
        page = generate_latest(metrics.registry).decode()
    assert "secret" not in page
    assert values(page)["request_seconds_count/none/404"] == 1
    assert values(page)["request_seconds_count//v1/models/{id}/404"] == 2


def test_the_manual_lists_them() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    section = manual.partition("\n## Metrics\n")[2].partition("\n## ")[0]
    documented = set(re.findall(r"^\| `(internvl_gateway_\w+)`", section, re.MULTILINE))
    app = create_app(Settings(), metrics := Metrics())
    assert app[METRICS] is metrics
    exposed = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in metrics.registry.collect()
    }
    assert documented == exposed


async def test_the_process_serves_them_on_a_port_of_their_own() -> None:
    port = free_port()
    options = ("--metrics-port", str(port))
    async with running_process(ScriptedVision(), ScriptedLLM(), *options) as (_, http):
        async with http.post(CHAT, json=chat_body()) as response:
            assert response.status == 200
        async with (
            aiohttp.ClientSession() as other,
            other.get(f"http://127.0.0.1:{port}/metrics") as response,
        ):
            counted = values(await response.text())
        async with http.get("/metrics") as response:
            assert response.status == 404
    assert counted[f"request_seconds_count/{CHAT}/200"] == 1


async def test_a_metrics_port_in_use_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        status, output = await failed_start("--port", "0", "--metrics-port", str(port))
    assert status == 1
    event = json.loads(output)
    assert event["error"].startswith(f"cannot serve metrics on 127.0.0.1:{port}")
