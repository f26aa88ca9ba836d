"""Requests that the page copies as texts: they run, and ask what the page has asked."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import runpy
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser

from tests.fakes import ScriptedLLM, stack
from tests.page.browser import Visit, visiting

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Names and texts with all that a shell, a here-document or a string of Python could take amiss.
NAME = "it's a $HOME `id` \"\\ 图\n\x03\x1b\x7f\u202e (1).png"
TEXT = (
    'It\'s "$HOME" `id` ${x} \\n \\\\ 图😀 \u2028\n\tJSON\nJSON\n\'\'\'""" $(id) {0} %s \x07'
    + "\x7f\x9b\u202e"
)
URL = "https://example.com/a.png?b=c&d=$e"
OTHER_URL = "data:image/gif;base64,R0lGODlhAQABAAAAACw="


def image(url: str, **choices: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **choices}}


REQUEST: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": TEXT},
        {"role": "user", "content": [image("data:image/png;base64,", detail="low")]},
        {"role": "assistant", "content": TEXT},
        {
            "role": "user",
            "content": [
                image("data:image/webp;base64,", max_dynamic_patch=6),
                image(URL),
                image(OTHER_URL),
                {"type": "text", "text": TEXT},
            ],
        },
    ],
    "temperature": 0.5,
    "seed": 3,
    "stop": ["$", "\\"],
    "top_k": 4,
    "repetition_penalty": 1.1,
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "answer",
            "schema": {"type": "object", "additionalProperties": False, "default": None},
        },
    },
}
CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
NAMES = [NAME, "-n.webp", "", ""]


class Recorder:
    """A server that keeps what it is asked, and answers shortly."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("Authorization"))
        if not body.get("stream"):
            message = {"role": "assistant", "content": "answered"}
            return web.json_response({"choices": [{"index": 0, "message": message}]})
        chunk = json.dumps({"choices": [{"index": 0, "delta": {"content": "answered"}}]})
        text = f"data: {chunk}\n\ndata: [DONE]\n\n"
        return web.Response(text=text, content_type="text/event-stream")


@pytest_asyncio.fixture(loop_scope="session")
async def recorder() -> AsyncIterator[tuple[Recorder, str]]:
    """A recorder, and its origin."""
    recorder = Recorder()
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/v1/chat/completions", recorder.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield recorder, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def person(browser: Browser) -> AsyncIterator[Visit]:
    """A visit of the page; only its texts are wanted."""
    async with (
        stack(llm=ScriptedLLM(texts=["hi"])) as gateway,
        visiting(browser, gateway.url) as person,
    ):
        yield person


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the key in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INTERNVL_API_KEY", "the key")
    return tmp_path


WRITE = """([form, request, origin, options]) =>
  import("/page/exports.js").then((exports) => exports[form](request, origin, options))"""


async def written(
    person: Visit, form: str, request: dict[str, Any], origin: str, **options: Any
) -> str:
    text: str = await person.page.evaluate(WRITE, [form, request, origin, options])
    return text


async def run(form: str, text: str) -> str:
    """Runs a text in the current folder; returns what it has printed."""
    if form == "asPython":
        return await asyncio.to_thread(run_python, text)
    process = await asyncio.create_subprocess_exec(
        *("bash", "-eu"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate(text.encode())
    assert process.returncode == 0, text
    return output.decode()


def run_python(text: str) -> str:
    """Runs a program here: openai's import alone takes seconds."""
    Path("program.py").write_text(text)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        runpy.run_path("program.py")
    return output.getvalue()


@pytest.mark.parametrize("form", ["asCurl", "asPython"])
@pytest.mark.parametrize("is_streamed", [True, False], ids=["streamed", "whole"])
async def test_a_copy_asks_the_same(
    person: Visit, recorder: tuple[Recorder, str], folder: Path, form: str, is_streamed: bool
) -> None:
    if form == "asCurl" and not shutil.which("curl"):
        pytest.skip("no curl here")
    seen, origin = recorder
    (folder / NAME).write_bytes(b"first")
    (folder / "-n.webp").write_bytes(b"second" * 100)
    request = REQUEST | ({"stream": True} if is_streamed else {})
    text = await written(person, form, request, origin, names=NAMES, hasKey=True)
    assert not CONTROLS.search(text)  # a terminal that it is pasted into would obey them
    assert "answered" in await run(form, text)
    assert seen.keys == ["Bearer the key"]
    expected = json.loads(json.dumps(request))
    expected["messages"][1]["content"][0]["image_url"]["url"] += "Zmlyc3Q="
    expected["messages"][3]["content"][0]["image_url"]["url"] += "c2Vjb25k" * 100
    assert seen.bodies == [expected]


@pytest.mark.parametrize("form", ["asCurl", "asPython"])
async def test_a_copy_without_pictures(
    person: Visit, recorder: tuple[Recorder, str], folder: Path, form: str
) -> None:
    seen, origin = recorder
    request = {"model": "m", "messages": [{"role": "user", "content": TEXT}]}
    text = await written(person, form, request, origin)
    assert "base64" not in text
    await run(form, text)
    assert seen.bodies == [request]
