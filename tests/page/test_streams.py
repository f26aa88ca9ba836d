"""Long answers, stopped ones, and those whose connection breaks."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from playwright.async_api import expect

from protos.errors import EngineDeadError, OverloadedError
from tests.chaos.proxy import Proxy, ResetPeer
from tests.fakes import ScriptedLLM, happening, stack
from tests.page.conftest import Visiting
from tests.page.scripted import PacedLLM, in_pieces, long_answer

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOKEN_COUNT = 1500
TOKENS_PER_SECOND = 400
# Counts the nodes that come into answers from now on.
COUNT_NODES = """() => {
  window.nodeCount = 0;
  const size = (node) => 1 + [...node.childNodes].reduce((sum, child) => sum + size(child), 0);
  new MutationObserver((changes) => {
    for (const { addedNodes } of changes) for (const node of addedNodes) nodeCount += size(node);
  }).observe(document.querySelector("#conversation"), {childList: true, subtree: true});
}"""
NODES_SHOWN = """() => {
  const size = (node) => 1 + [...node.childNodes].reduce((sum, child) => sum + size(child), 0);
  return size(document.querySelector(".answer-text"));
}"""


@pytest.mark.slow
async def test_what_has_been_shown_of_a_long_answer_is_not_made_anew(visit: Visiting) -> None:
    texts = long_answer(TOKEN_COUNT, line_count=200)
    llm = PacedLLM(texts=texts, tokens_per_second=TOKENS_PER_SECOND)
    async with stack(llm=llm) as gateway, visit(gateway.url) as person:
        await person.page.evaluate(COUNT_NODES)
        await person.ask("Tell me everything", wait=False)
        await person.answered()
        made = await person.page.evaluate("window.nodeCount")
        shown = await person.page.evaluate(NODES_SHOWN)
        assert "tile_199 = grid[199]" in await person.answer.locator(".answer-text").inner_text()
    # All of it anew in each frame would make a hundred times as many.
    assert made < 8 * shown


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
