"""The page about the API: all paths are there, and everybody can use it."""

from __future__ import annotations

import json

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import expect

from gateway.app import OPERATIONS
from tests.fakes import stack
from tests.page.conftest import Visiting

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_all_paths_are_described(visit: Visiting) -> None:
    async with stack() as gateway, visit(gateway.url) as person:
        await person.page.goto(f"{gateway.url}/docs")
        await expect(person.page.locator("section")).to_have_count(len(OPERATIONS))
        await expect(person.page.locator("nav a")).to_have_count(len(OPERATIONS))
        text = await person.page.locator("main").inner_text()
        assert "[object" not in text
        assert "undefined" not in text
        assert "**" not in text
        assert "](#" not in text
        results = await Axe().run(person.page)
        assert results.response["violations"] == []


@pytest.mark.slow
async def test_an_example_is_a_command_that_can_be_sent(visit: Visiting) -> None:
    async with stack() as gateway, visit(gateway.url) as person:
        await person.page.goto(f"{gateway.url}/docs")
        chat = person.page.locator("#post_v1_chat_completions")
        await chat.get_by_role("button", name="stream").click()
        command = await chat.locator("pre").inner_text()
        assert command.startswith(f"curl {gateway.url}/v1/chat/completions")
        body = json.loads(command.partition("-d '")[2].rstrip("'"))
        assert body["stream"] is True


@pytest.mark.slow
async def test_fields_of_fields_are_opened(visit: Visiting) -> None:
    async with stack() as gateway, visit(gateway.url) as person:
        await person.page.goto(f"{gateway.url}/docs")
        chat = person.page.locator("#post_v1_chat_completions")
        messages = chat.locator("li:has(> .docs-name:text-matches('^messages'))").first
        await messages.locator("summary").first.click()
        await expect(messages.locator(".docs-name", has_text="content").first).to_be_visible()
