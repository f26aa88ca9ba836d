"""Open WebUI in a browser: a text, a picture, and a third turn."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright, expect

START_SECONDS = 600.0
WAIT_MS = 120_000
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
# Its defaults send the definitions of all its tools, which are twice the toy model's context.
SETTINGS = {
    "perfect": {},
    "toy": {"DEFAULT_MODEL_METADATA": json.dumps({"capabilities": {"builtin_tools": False}})},
}
PERSON = {"name": "Ada", "email": "ada@example.com", "password": "a-long-password"}


@dataclass(frozen=True)
class Site:
    """A new Open WebUI that knows one of the servers, and nothing else."""

    url: str
    log: Path


@pytest.fixture(scope="session", params=SETTINGS)
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("open-webui")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    variables = {
        "DATA_DIR": str(folder),
        "OPENAI_API_BASE_URL": request.getfixturevalue(f"{request.param}_url"),
        "OPENAI_API_KEY": "none",
        **SETTINGS[request.param],
    }
    site = Site(f"http://127.0.0.1:{port}", folder / "log")
    with (
        site.log.open("w") as log,
        subprocess.Popen(
            [Path(sys.executable).parent / "open-webui", "serve", f"--port={port}"],
            cwd=folder,
            env=os.environ | variables,
            stdout=log,
            stderr=log,
        ) as process,
    ):
        try:
            wait_serving(site, process)
            yield site
        finally:
            process.terminate()


def wait_serving(site: Site, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, site.log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"{site.url}/health"):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(1)
    raise TimeoutError(site.log.read_text()[-2000:])


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


async def sign_up(page: Page, site: Site) -> None:
    """Makes the first account, which is the administrator's."""
    await page.goto(f"{site.url}/auth")
    await page.get_by_text("Get started").click()
    for name, value in PERSON.items():
        await page.locator(f"#{name}").fill(value)
    await page.get_by_text("Create Admin Account").click()
    await page.get_by_text("Okay, Let's Go!").click()  # what is new in this version


async def ask(page: Page, question: str) -> str:
    """Returns the answer, once it is whole."""
    answered = page.get_by_label("Regenerate")
    count = await answered.count()
    await page.locator("#chat-input").click()
    await page.keyboard.type(question)
    await page.locator("#send-message-button").click()
    await expect(answered).to_have_count(count + 1, timeout=WAIT_MS)
    return await page.locator(".chat-assistant").last.inner_text()


async def test_conversation(page: Page, site: Site, picture: Path) -> None:
    await sign_up(page, site)
    assert await ask(page, "Hello")
    await page.locator("input[type=file]").first.set_input_files(picture)
    assert "panda" in await ask(page, "What do you see in the picture?")
    assert await ask(page, "Who are you?")
    # It shows a refusal as an answer.
    assert "upstream_error" not in site.log.read_text()
