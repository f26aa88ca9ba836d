"""Conversations with the shipped model: answers, tiles, caches and times are real."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from playwright.async_api import expect

from gateway.local.stack import Stack
from models.demo.__main__ import PICTURES, picture_server
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc
from tests.page.browser import PHONE, Visit
from tests.page.conftest import Visiting

pytestmark = pytest.mark.asyncio(loop_scope="session")

LARGE = PICTURES / "large.png"
# What keeps the demo model talking until somebody stops it.
ENDLESS_SCHEMA = json.dumps(
    {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 900, "maxItems": 1000}
)
THINGS_SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["count"],
        "additionalProperties": False,
    }
)


async def tiles(origin: str, **query: Any) -> dict[str, Any]:
    """Returns what GET /v1/tiles says."""
    async with aiohttp.ClientSession(origin) as http, http.get("/v1/tiles", params=query) as found:
        assert found.status == 200
        plan: dict[str, Any] = await found.json()
        return plan


def digits(text: str) -> str:
    """Returns a text without what groups digits."""
    return re.sub(r"(?<=\d)[,.\u202f\u00a0](?=\d{3})", "", text)


async def open_tiles(person: Visit, card: str = ".pictures-list .pictures-show") -> None:
    await person.page.locator(card).first.click()
    await expect(person.page.locator("#inspector")).to_be_visible()


async def choose_schema(person: Visit, schema: str) -> None:
    """Asks for answers of a schema, in the settings."""
    await (await person.button("drawer.title")).click()
    await person.page.locator("#drawer-format").select_option("json_schema")
    await person.page.locator("#drawer-schema").fill(schema)
    await person.page.keyboard.press("Escape")


@pytest.mark.parametrize(
    ("options", "question", "answer", "follow_up", "second_answer"),
    [
        (
            {"locale": "en-GB"},
            "What is in the bottom right?",
            "fox",
            "Read the text in the top left.",
            "意秋",
        ),
        pytest.param(
            {"locale": "zh-CN", "viewport": PHONE, "has_touch": True},
            "右下角有什么东西？",
            "狐狸",
            "左上角写了什么字？",
            "意秋",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["English, desktop", "Chinese, phone"],
)
async def test_a_picture_its_tiles_and_a_second_turn(
    served: Stack,
    visit: Visiting,
    options: dict[str, Any],
    question: str,
    answer: str,
    follow_up: str,
    second_answer: str,
    tmp_path: Path,
) -> None:
    picture = tmp_path / "large.png"
    # No cache knows these bytes yet.
    picture.write_bytes(LARGE.read_bytes() + question.encode())
    async with visit(served.url, **options) as person:
        await person.attach(picture)
        await open_tiles(person)
        plan = await tiles(served.url, width=896, height=896)
        inspector = person.page.locator("#inspector")
        expected = await person.words("tiles.tokens", count=plan["token_count"])
        await expect(inspector.locator(".tiles-facts")).to_contain_text(re.compile(r"\d"))
        assert expected in digits(await inspector.locator(".tiles-facts").inner_text())
        await (await person.button("tiles.close")).click()

        await person.ask(question)
        await expect(person.answer.locator(".answer-body")).to_contain_text(answer)
        facts = digits(await person.answer.locator(".answer-facts").inner_text())
        assert str(plan["token_count"]) in facts
        assert await person.words("facts.source.encoded") in facts
        await expect(person.answer.locator(".answer-stage").first).to_be_attached()

        await person.ask(follow_up)
        await expect(person.answer.locator(".answer-body")).to_contain_text(second_answer)
        facts = digits(await person.answer.locator(".answer-facts").inner_text())
        cached = re.search(await cached_pattern(person), facts)
        assert cached
        assert int(cached[1]) >= plan["token_count"]

        await open_tiles(person, ".pictures-strip .pictures-show")
        await expect(inspector.locator(".tiles-source")).to_be_visible()
        columns, rows = plan["column_count"], plan["row_count"]
        sheet = await person.words("stage.sheet", columns=columns, rows=rows)
        await expect(inspector.locator(".tiles-sheet")).to_have_attribute("aria-label", sheet)


async def cached_pattern(person: Visit) -> str:
    words = await person.words("facts.cached", count="NUMBER")
    return re.escape(words).replace("NUMBER", r"(\d+)")


@pytest.mark.slow
async def test_the_preview_is_the_endpoints_for_any_choice(served: Stack, visit: Visiting) -> None:
    async with visit(served.url) as person:
        await person.attach(LARGE)
        await open_tiles(person)
        inspector = person.page.locator("#inspector")
        for choice in ("low", "high", "auto"):
            await inspector.locator(f"input[value={choice}]").check()
            await expect_plan(person, await tiles(served.url, width=896, height=896, detail=choice))
        slider = inspector.locator("#tiles-cap")
        most = await slider.get_attribute("max")
        for cap in range(1, int(most or 0) + 1):
            await slider.fill(str(cap))
            plan = await tiles(served.url, width=896, height=896, max_dynamic_patch=cap)
            await expect_plan(person, plan)


async def expect_plan(person: Visit, plan: dict[str, Any]) -> None:
    inspector = person.page.locator("#inspector")
    sheet = await person.words("stage.sheet", columns=plan["column_count"], rows=plan["row_count"])
    await expect(inspector.locator(".tiles-sheet")).to_have_attribute("aria-label", sheet)
    grouped = f"{plan['token_count']:,}"
    await expect(inspector.locator(".tiles-facts strong")).to_contain_text(grouped)
    has_thumbnail = plan["tile_count"] > plan["column_count"] * plan["row_count"]
    await expect(inspector.locator(".tiles-thumbnail")).to_have_count(int(has_thumbnail))


async def test_a_picture_by_address(served: Stack, visit: Visiting) -> None:
    with picture_server(PICTURES) as address:
        async with visit(served.url) as person:
            await add_address(person, f"{address}/sign.png")
            await person.ask("What is written at the bottom?")
            await expect(person.answer.locator(".answer-body")).to_contain_text("PUSH")
            # The grid is known from the answer: the browser has never seen the picture.
            await open_tiles(person, ".pictures-strip .pictures-show")
            await expect(person.page.locator("#inspector .tiles-sheet")).to_be_visible()
            assert not [url for url in person.requests if "sign.png" in url]


async def add_address(person: Visit, address: str) -> None:
    await person.add("url")
    await person.page.locator("#pictures-address").fill(address)
    await person.page.locator(".pictures-main").click()


async def test_an_address_that_may_not_be_read_is_said(served: Stack, visit: Visiting) -> None:
    async with visit(served.url) as person:
        person.expected.append("status of 403")
        await add_address(person, "http://10.0.0.1/private.png")
        await person.ask("What is this?")
        await expect(person.answer.locator(".answer-error")).to_contain_text("not public")


async def test_a_broken_picture_is_said(served: Stack, visit: Visiting, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(LARGE.read_bytes()[:2000])
    async with visit(served.url) as person:
        person.expected.append("status of 400")
        await person.ask("What is this?", broken)
        await expect(person.answer.locator(".answer-error")).to_be_visible()


async def test_an_answer_of_a_schema(served: Stack, visit: Visiting) -> None:
    async with visit(served.url) as person:
        await choose_schema(person, THINGS_SCHEMA)
        await person.ask("How many things are there?", PICTURES / "scene.png")
        text = await person.answer.locator(".answer-code code").inner_text()
        assert set(json.loads(text)) == {"count"}


@asynccontextmanager
async def engine(served: Stack) -> AsyncIterator[llm_pb2_grpc.LLMServiceAsyncStub]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{served.llm.port}") as channel:
        yield llm_pb2_grpc.LLMServiceStub(channel)


async def running(stub: llm_pb2_grpc.LLMServiceAsyncStub, count: int) -> None:
    """Waits until so many sequences run in the engine."""
    for _ in range(100):
        if (await stub.GetLoad(llm_pb2.GetLoadRequest())).running_sequence_count == count:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"there are not {count} running sequences")


async def test_stop_frees_the_real_engine(served: Stack, visit: Visiting) -> None:
    async with engine(served) as stub, visit(served.url) as person:
        await choose_schema(person, ENDLESS_SCHEMA)
        await person.ask("Go on", wait=False)
        await running(stub, 1)
        await (await person.button("answer.stop")).click()
        await running(stub, 0)
        await expect(person.answer).to_contain_text(await person.words("answer.stopped"))


async def test_the_strip_tells_model_and_load(served: Stack, visit: Visiting) -> None:
    async with visit(served.url) as person:
        strip = person.page.locator("#strip")
        await expect(strip).to_contain_text("InternVL2_5")
        await expect(strip).to_contain_text("8,192")
        await expect(strip).to_contain_text(await person.words("strip.replica"))
