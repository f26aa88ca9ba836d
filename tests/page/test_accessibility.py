"""axe-core finds nothing in any state of the page, in both themes, on a desktop and a phone."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import expect

from models.demo.__main__ import PICTURES
from protos.errors import EngineDeadError
from tests.fakes import stack
from tests.page.browser import PHONE, Visit
from tests.page.conftest import Visiting
from tests.page.scripted import PacedLLM, in_pieces

pytestmark = pytest.mark.asyncio(loop_scope="session")

ANSWER = """### Two things

There is a **fox** and a `bell`, see [the guide](https://example.com).

| thing | where |
| --- | ---: |
| fox | right |

1. one
2. two

> a quotation

```python
print("fox")
```
"""
Prepare = Callable[[Visit], Awaitable[None]]


async def start(person: Visit) -> None:
    await expect(person.page.locator(".welcome")).to_be_visible()


async def tray(person: Visit) -> None:
    await person.attach(PICTURES / "pair-1.png", PICTURES / "pair-2.png")
    await expect(person.page.locator(".pictures-caption").last).not_to_be_empty()


async def tray_menu(person: Visit) -> None:
    await person.page.locator(".pictures-add").click()


async def address(person: Visit) -> None:
    await person.add("url")
    await person.page.locator(".pictures-main").click()


async def camera(person: Visit) -> None:
    await person.add("camera")
    await expect(await person.button("camera.shutter")).to_be_enabled()


async def tile_view(person: Visit) -> None:
    await person.attach(PICTURES / "large.png")
    await person.page.locator(".pictures-list .pictures-show").click()
    await expect(person.page.locator("#inspector .tiles-sheet")).to_be_visible()


async def tile_view_of_the_model(person: Visit) -> None:
    await tile_view(person)
    await person.page.locator("#inspector input[value=model]").check()
    await expect(person.page.locator("#inspector canvas").first).to_be_visible()


async def conversation(person: Visit) -> None:
    await person.ask("What is there?", PICTURES / "large.png", PICTURES / "sign.png")
    await person.page.locator(".answer-timing summary").click()


async def editing(person: Visit) -> None:
    await person.ask("What is there?")
    await (await person.button("conversation.edit")).click()


async def settings(person: Visit) -> None:
    await (await person.button("menu.settings")).click()
    await person.page.locator("#drawer-format").select_option("json_schema")
    await person.page.locator("#drawer-schema").fill("{")
    await person.page.locator("#drawer-top_p").fill("7")


async def history(person: Visit) -> None:
    await person.ask("What is there?")
    await (await person.button("menu.history")).click()
    await expect(person.page.locator(".history-open")).to_be_visible()


async def menu(person: Visit) -> None:
    await (await person.button("menu.more")).click()
    await expect(person.page.locator("#menu")).to_be_visible()


SHOWN_IN_LIGHT: list[Prepare] = [start, tile_view, conversation, menu]
SHOWN_IN_DARK: list[Prepare] = [tray, tile_view_of_the_model, settings]
OTHERS: list[Prepare] = [tray_menu, address, camera, editing, history]
LIGHT: dict[str, Any] = {"reduced_motion": "reduce"}
DARK: dict[str, Any] = LIGHT | {"color_scheme": "dark", "viewport": PHONE, "locale": "zh-CN"}
PLACES = [
    pytest.param(LIGHT, SHOWN_IN_LIGHT, id="light, desktop, English"),
    pytest.param(DARK, SHOWN_IN_DARK, id="dark, phone, Chinese", marks=pytest.mark.slow),
    pytest.param(LIGHT, SHOWN_IN_DARK + OTHERS, id="light, the others", marks=pytest.mark.slow),
    pytest.param(DARK, SHOWN_IN_LIGHT + OTHERS, id="dark, the others", marks=pytest.mark.slow),
]


async def violations(person: Visit) -> list[str]:
    """Returns what axe-core finds, with the elements."""
    found = await Axe().run(person.page)
    return [
        f"{violation['id']}: {[node['html'][:300] for node in violation['nodes']]}"
        for violation in found.response["violations"]
    ]


@pytest.mark.parametrize(("options", "states"), PLACES)
async def test_axe_finds_nothing(
    visit: Visiting, options: dict[str, Any], states: list[Prepare]
) -> None:
    found: dict[str, list[str]] = {}
    async with stack(llm=PacedLLM(texts=in_pieces(ANSWER))) as gateway:
        for prepare in states:
            async with visit(gateway.url, **options) as person:
                await prepare(person)
                if seen := await violations(person):
                    found[prepare.__name__] = seen
    assert not found, json.dumps(found, indent=1, ensure_ascii=False)


@pytest.mark.slow
async def test_axe_finds_nothing_while_an_answer_comes_and_when_it_fails(visit: Visiting) -> None:
    llm = PacedLLM(texts=["word "] * 500, tokens_per_second=20)
    async with stack(llm=llm) as gateway, visit(gateway.url) as person:
        await person.ask("Go on", wait=False)
        await expect(person.answer).to_contain_text("word word")
        assert await violations(person) == []
        await (await person.button("answer.stop")).click()
        await person.answered()  # the page takes no question before
        llm.late_failure, llm.texts = EngineDeadError("it died"), ["half"]
        await person.ask("Again")
        await expect(person.answer.locator(".answer-error")).to_be_visible()
        assert await violations(person) == []
