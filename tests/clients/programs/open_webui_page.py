"""Open WebUI with its defaults, in a browser: a text, a second turn, and a picture."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright, expect

START_SECONDS = 600.0
WAIT_MS = 120_000
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
PERSON = {"name": "Ada", "email": "ada@example.com", "password": "a-long-password"}


@pytest.fixture(scope="session", params=["toy", "perfect"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A new Open WebUI that knows one of the servers, and nothing else."""
    folder = tmp_path_factory.mktemp("open-webui")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    variables = {
        "DATA_DIR": str(folder),
        "OPENAI_API_BASE_URL": request.getfixturevalue(f"{request.param}_url"),
        "OPENAI_API_KEY": "none",
    }
    command = [Path(sys.executable).parent / "open-webui", "serve", "--host=127.0.0.1"]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            [*command, f"--port={port}"],
            cwd=folder,
            env=os.environ | variables,
            stdout=log,
            stderr=log,
        ) as process,
    ):
        try:
            yield wait_serving(f"http://127.0.0.1:{port}", process)
        finally:
            process.terminate()


def wait_serving(site: str, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None
        try:
            with urllib.request.urlopen(f"{site}/health"):
                return site
        except (urllib.error.URLError, ConnectionError):
            time.sleep(1)
    raise TimeoutError(site)


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    chromium = next(filter(None, map(shutil.which, CHROMIUM)))
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        page = await browser.new_page()
        page.set_default_timeout(WAIT_MS)
        yield page
        await browser.close()


async def sign_up(page: Page, site: str) -> None:
    """The first account is the administrator's."""
    await page.goto(f"{site}/auth")
    for name, value in PERSON.items():
        await page.locator(f"#{name}").fill(value)
    await page.locator("button[type=submit]").click()
    await page.wait_for_selector("#chat-input")


async def ask(page: Page, question: str, answer_count: int) -> str:
    """Returns the answer, once it is whole."""
    await page.locator("#chat-input").click()
    await page.keyboard.type(question)
    await page.locator("#send-message-button").click()
    answer = page.locator(".chat-assistant").nth(answer_count)
    await expect(answer).not_to_be_empty(timeout=WAIT_MS)
    return await answer.inner_text()


async def test_conversation(page: Page, site: str, picture: Path) -> None:
    await sign_up(page, site)
    assert await ask(page, "Hello", 0)
    await page.locator("input[type=file]").first.set_input_files(picture)
    assert "panda" in await ask(page, "What do you see in the picture?", 1)
    assert await ask(page, "Who are you?", 2)
