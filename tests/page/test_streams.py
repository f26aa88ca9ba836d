"""Long answers, stopped ones, and those whose connection breaks."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import pytest
from playwright.async_api import expect

from protos.errors import EngineDeadError, OverloadedError
from tests.chaos.proxy import Proxy, ResetPeer
from tests.fakes import ScriptedLLM, happening, stack
from tests.page.conftest import Visiting
from tests.page.scripted import PacedLLM, in_pieces, long_answer

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOKEN_COUNT = 10_000
TOKENS_PER_SECOND = 500
# Counts frames until window.counting is false: how many in each second.
COUNT_FRAMES = """() => {
  window.frames_ = [];
  window.counting = true;
  const count = (time) => {
    window.frames_.push(time);
    if (window.counting) requestAnimationFrame(count);
  };
  requestAnimationFrame(count);
}"""
FRAME_RATE = """() => {
  window.counting = false;
  const times = window.frames_;
  const gaps = times.slice(1).map((time, i) => time - times[i]).sort((a, b) => a - b);
  return {
    rate: 1000 * (times.length - 1) / (times.at(-1) - times[0]),
    slowest: gaps.at(-1),
    late: gaps.filter((gap) => gap > 100).length,
  };
}"""


@pytest.mark.slow
async def test_a_long_answer_keeps_the_frames(visit: Visiting) -> None:
    texts = long_answer(TOKEN_COUNT)
    llm = PacedLLM(texts=texts, tokens_per_second=TOKENS_PER_SECOND)
    async with stack(llm=llm) as gateway, visit(gateway.url) as person:
        await person.page.evaluate(COUNT_FRAMES)
        await asyncio.sleep(2)
        idle = await person.page.evaluate(FRAME_RATE)
        await person.page.evaluate(COUNT_FRAMES)
        await person.ask("Tell me everything", wait=False)
        await person.answered(timeout_ms=60_000)
        seen = await person.page.evaluate(FRAME_RATE)
        shown = await person.answer.locator(".answer-text").inner_text()
    assert "tile_1999 = grid[1999]" in shown
    assert seen["rate"] >= 50, (idle, seen)


async def test_stop_frees_the_engine(visit: Visiting) -> None:
    llm = PacedLLM(texts=["word "] * 5000, tokens_per_second=50)
    async with stack(llm=llm) as gateway, visit(gateway.url) as person:
        await person.ask("Count for ever", wait=False)
        await expect(person.answer).to_contain_text("word word")
        await (await person.button("answer.stop")).click()
        await happening(llm.cancelled)
        await person.answered()
        await expect(person.answer).to_contain_text(await person.words("answer.stopped"))
        await expect(person.answer).to_contain_text("word word")
        # The page goes on.
        llm.texts = ["done"]
        await person.ask("And now?")
        await expect(person.answer).to_contain_text("done")


async def test_a_lost_connection_resumes_nothing_and_says_so(visit: Visiting) -> None:
    llm = PacedLLM(texts=["word "] * 5000, tokens_per_second=50)
    async with stack(llm=llm) as gateway:
        proxy = Proxy(urlsplit(gateway.url).port or 0, seed=1)
        async with proxy.running(), visit(f"http://127.0.0.1:{proxy.port}") as person:
            person.expected.append("ERR_")
            await person.ask("Count for ever", wait=False)
            await expect(person.answer).to_contain_text("word word")
            async with proxy.poisoned(ResetPeer(), "downstream"):
                await expect(person.answer.locator(".answer-error")).to_be_visible()
            sentence = await person.words("answer.error.connection_lost")
            await expect(person.answer).to_contain_text(sentence)
            await expect(person.answer).to_contain_text("word word")
            assert len(llm.starts) == 1
            llm.texts = ["whole"]
            await (await person.button("answer.again")).last.click()
            await person.answered()
            await expect(person.answer).to_contain_text("whole")


async def test_a_gateway_that_is_gone_is_said(visit: Visiting) -> None:
    async with stack(llm=ScriptedLLM(texts=["hi"])) as gateway:
        proxy = Proxy(urlsplit(gateway.url).port or 0, seed=1)
        async with proxy.running(), visit(f"http://127.0.0.1:{proxy.port}") as person:
            person.expected.append("ERR_")
            async with proxy.poisoned(ResetPeer(), "downstream"):
                await person.ask("Anybody there?")
                sentence = await person.words("answer.error.unreachable")
                await expect(person.answer).to_contain_text(sentence)


async def test_an_overload_says_when_to_come_back(visit: Visiting) -> None:
    llm = ScriptedLLM(failures=[OverloadedError("the LLM service is full")] * 9)
    async with stack(llm=llm) as gateway, visit(gateway.url) as person:
        person.expected.append("429")
        await person.ask("Hello?")
        await expect(person.answer.locator(".answer-error")).to_be_visible()


async def test_an_engine_that_dies_in_an_answer_is_said(visit: Visiting) -> None:
    llm = ScriptedLLM(texts=in_pieces("half an ans"), late_failure=EngineDeadError("it died"))
    async with stack(llm=llm) as gateway, visit(gateway.url) as person:
        await person.ask("Hello?")
        await expect(person.answer).to_contain_text("half an ans")
        await expect(person.answer.locator(".answer-error")).to_be_visible()
