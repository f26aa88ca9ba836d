"""Many large pictures: the page takes them, and stays awake."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.async_api import expect

from tests.fakes import stack
from tests.page.conftest import Visiting

pytestmark = pytest.mark.asyncio(loop_scope="session")

PICTURE_COUNT = 50
# Noise of this size is a PNG of 20 MB.
EDGE = 2600
MIB = 1 << 20


def noisy_pictures(folder: Path, count: int) -> list[Path]:
    """Returns pictures of 20 MB each; they share their bytes on the disk, not in the browser."""
    pixels = np.random.default_rng(0).integers(0, 256, (EDGE, EDGE, 3), np.uint8)
    first = folder / "noise-0.png"
    Image.fromarray(pixels).save(first, compress_level=0)
    assert first.stat().st_size >= 19 * MIB
    others = [folder / f"noise-{number}.png" for number in range(1, count)]
    for other in others:
        os.link(first, other)
    return [first, *others]


@pytest.mark.slow
@pytest.mark.parametrize("picture_count", [16, pytest.param(PICTURE_COUNT, marks=pytest.mark.slow)])
async def test_large_pictures_do_not_freeze_the_page(
    visit: Visiting, tmp_path: Path, picture_count: int
) -> None:
    files = noisy_pictures(tmp_path, picture_count)
    async with stack() as gateway, visit(gateway.url) as person:
        cards = person.page.locator(".pictures-list .pictures-card")
        await person.attach(*files)
        await expect(cards).to_have_count(picture_count)
        await (await person.button("drawer.title")).click()
        await expect(person.page.locator("#settings")).to_be_visible()
        previews = person.page.locator(".pictures-list .pictures-thumbnail canvas")
        shown_count = await previews.count()
        await expect(previews).to_have_count(picture_count, timeout=90_000)
    assert shown_count < picture_count, "the click was answered only after all pictures were read"


@pytest.mark.slow
async def test_one_file_too_many_or_too_large_is_said(visit: Visiting, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(49 * MIB)
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    async with stack() as gateway, visit(gateway.url) as person:
        problem = person.page.locator(".composer-problem")
        await person.attach(large)
        await expect(problem).to_contain_text("48")
        await person.attach(text)
        await expect(problem).to_contain_text("notes.txt")
        await expect(person.page.locator(".pictures-card")).to_have_count(0)
