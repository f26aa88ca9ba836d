"""The pictures in docs/page.md: real answers of the shipped model, taken only when asked for.

`PAGE_SCREENSHOTS=docs/page pytest tests/page -k screenshots`
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.async_api import expect

from gateway.local.stack import Stack
from models.demo.__main__ import PICTURES
from tests.page.browser import PHONE, Visit
from tests.page.conftest import Visiting

FOLDER = os.environ.get("PAGE_SCREENSHOTS", "")
pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(not FOLDER, reason="PAGE_SCREENSHOTS names no folder"),
]
MAX_BYTE_COUNT = 150_000
WIDE = {"width": 1280, "height": 860}
ENGLISH = ("What is in the bottom right?", "Read the text in the top left.")
CHINESE = ("右下角有什么东西？", "左上角写了什么字？")
PHONE_OPTIONS: dict[str, Any] = {"viewport": PHONE, "device_scale_factor": 2, "has_touch": True}
WIDE_OPTIONS: dict[str, Any] = {"viewport": WIDE, "device_scale_factor": 1.5}
SHOTS: dict[str, tuple[dict[str, Any], tuple[str, str], bool]] = {
    "desktop": (WIDE_OPTIONS | {"locale": "en-GB"}, ENGLISH, True),
    "dark": (WIDE_OPTIONS | {"locale": "en-GB", "color_scheme": "dark"}, ENGLISH, True),
    "chinese": (WIDE_OPTIONS | {"locale": "zh-CN"}, CHINESE, True),
    "phone": (PHONE_OPTIONS | {"locale": "en-GB"}, ENGLISH, False),
    "phone-zh": (PHONE_OPTIONS | {"locale": "zh-CN"}, CHINESE, False),
}


async def save(person: Visit, name: str) -> None:
    """Writes what is seen as a WebP file."""
    data = await person.page.screenshot(animations="disabled", caret="hide")
    path = Path(FOLDER) / f"{name}.webp"
    Image.open(io.BytesIO(data)).convert("RGB").save(path, quality=88, method=6)
    assert path.stat().st_size < MAX_BYTE_COUNT


@pytest.mark.parametrize("name", SHOTS)
async def test_screenshots(served: Stack, visit: Visiting, tmp_path: Path, name: str) -> None:
    options, questions, shows_tiles = SHOTS[name]
    picture = tmp_path / "large.png"
    # No cache knows these bytes yet, so that the bar shows every stage.
    picture.write_bytes((PICTURES / "large.png").read_bytes() + name.encode())
    async with visit(served.url, **options) as person:
        await person.ask(questions[0], picture)
        await person.ask(questions[1])
        if name == "dark":
            await person.page.locator(".answer-timing summary").first.click()
        if shows_tiles:
            await person.page.locator(".pictures-strip .pictures-show").click()
            await expect(person.page.locator("#inspector .tiles-sheet")).to_be_visible()
        await person.page.locator(".turn").first.scroll_into_view_if_needed()
        await person.page.mouse.move(2, 2)
        running = await person.words("strip.running", count="1")
        await expect(person.page.locator("#strip")).not_to_contain_text(running)
        await save(person, name)


async def test_screenshots_of_a_phones_tiles(
    served: Stack, visit: Visiting, tmp_path: Path
) -> None:
    async with visit(served.url, **PHONE_OPTIONS) as person:
        await person.attach(PICTURES / "large.png")
        await person.page.locator(".pictures-list .pictures-show").click()
        await expect(person.page.locator("#inspector .tiles-sheet")).to_be_visible()
        await expect(person.page.locator("#inspector .tiles-facts")).to_be_visible()
        await save(person, "phone-tiles")
