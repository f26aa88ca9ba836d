"""A model's words are untrusted: whatever they hold, the page shows them, and does nothing."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from tests.fakes import stack
from tests.page.browser import Visit
from tests.page.conftest import Visiting
from tests.page.hostile_answers import ANSWERS
from tests.page.scripted import PacedLLM, in_pieces

pytestmark = pytest.mark.asyncio(loop_scope="session")

# What an answer must never become.
ACTIVE = (
    "script, iframe, object, embed, form, style, link, meta, base, svg, math, img, video, audio,"
    " template, input, select, textarea, [style], [id], [is], [popover], [autofocus]"
)
# All that the page is besides the answers.
SURROUNDINGS = """() => {
  const copy = document.documentElement.cloneNode(true);
  copy.querySelectorAll("article.answer, .conversation article, [role=status], progress")
    .forEach((element) => element.remove());
  return [...copy.querySelectorAll("head *, header, main, form, dialog")]
    .map((element) => `${element.tagName}#${element.id}.${element.className}`);
}"""


# What the last answer has done besides being shown.
HARM = """(active) => {
  const body = [...document.querySelectorAll(".answer-body")].at(-1);
  const all = [...body.querySelectorAll("*")];
  const isSafe = (link) =>
    ["http:", "https:", "mailto:"].includes(link.protocol) && link.target === "_blank"
    && link.relList.contains("noopener") && link.relList.contains("noreferrer");
  const isActive = (name) => name.startsWith("on") || (name.includes("href") && name !== "href");
  return [
    ...[...body.querySelectorAll(active)].map((element) => element.outerHTML),
    ...[...body.querySelectorAll("a")].filter((link) => !isSafe(link)).map((a) => a.outerHTML),
    ...all.flatMap((element) => element.getAttributeNames()).filter(isActive),
    ...window.watched.ran,
  ];
}"""


async def harm(person: Visit) -> list[str]:
    """Returns what the last answer has done besides being shown."""
    done: list[str] = await person.page.evaluate(HARM, ACTIVE)
    return done + [url for url in person.requests if "evil" in url]


async def test_all_of_them_in_one_answer_do_nothing(visit: Visiting) -> None:
    # What opens something for ever comes last.
    answers = sorted(ANSWERS, key=lambda name: name.startswith(("fence that", "nested", "many")))
    llm = PacedLLM(texts=in_pieces("\n\n---\n\n".join(ANSWERS[name] for name in answers), 24))
    async with stack(llm=llm) as gateway, visit(gateway.url) as person:
        before = await person.page.evaluate(SURROUNDINGS)
        await person.ask("What have you got?")
        assert await harm(person) == []
        await person.page.reload()
        await person.reopen()
        await expect(person.answer.locator(".answer-body")).to_contain_text("onerror")
        assert await harm(person) == []
        assert await person.page.evaluate(SURROUNDINGS) == before
        assert person.page.url == f"{gateway.url}/"


@pytest.mark.slow
async def test_each_of_them_does_nothing(visit: Visiting) -> None:
    llm = PacedLLM()
    async with stack(llm=llm) as gateway, visit(gateway.url) as person:
        before = await person.page.evaluate(SURROUNDINGS)
        harmful = {}
        for name, answer in ANSWERS.items():
            llm.texts = in_pieces(answer)
            await person.ask(name)
            if found := await harm(person):
                harmful[name] = found
        assert harmful == {}
        assert await person.page.evaluate(SURROUNDINGS) == before
        assert person.page.url == f"{gateway.url}/"


@pytest.mark.slow
async def test_words_stay_what_they_were(visit: Visiting) -> None:
    text = 'If a < b, write `<b>` or <b>bold</b> & "quoted" &amp; <!-- nothing is lost -->.'
    llm = PacedLLM(texts=in_pieces(text))
    async with stack(llm=llm) as gateway, visit(gateway.url) as person:
        await person.ask("HTML?")
        shown = await person.answer.locator(".answer-text").inner_text()
    assert shown == 'If a < b, write <b> or <b>bold</b> & "quoted" & <!-- nothing is lost -->.'


@pytest.mark.slow
async def test_a_hostile_question_is_text_too(visit: Visiting) -> None:
    llm = PacedLLM(texts=["no"])
    question = ANSWERS["onerror"] + ANSWERS["script"] + "</textarea><h1>x</h1>"
    async with stack(llm=llm) as gateway, visit(gateway.url) as person:
        await person.ask(question)
        await expect(person.page.get_by_text(question)).to_be_visible()
        assert (await person.watched())["ran"] == []
