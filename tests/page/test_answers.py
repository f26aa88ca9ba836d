"""The modules of an answer, each by itself: streams, timings, Markdown, JSON, conversations."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.fakes import ScriptedLLM, stack
from tests.page.browser import Visit, visiting

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def person(browser: Browser) -> AsyncIterator[Visit]:
    """A visit that all tests here share: they use its modules alone."""
    async with (
        stack(llm=ScriptedLLM(texts=["hi"])) as gateway,
        visiting(browser, gateway.url) as person,
    ):
        yield person


TIMING = (
    "fetch;dur=1.2, encode_wait;dur=310.0, preprocess;dur=11.0, queue;dur=0.5, forward;dur=290.0,"
    ' total;dur=400, image-1;desc="encoded 3x2+1 1200x800", image-2;desc="llm",'
    ' image-4;desc="vision_cache 1x1 448x448"'
)
STREAM = (
    f'data: {{"a": 1}}\r\n\r\n: server-timing: {TIMING}\n\ndata: x\ndata: é😀\rid: 3\r\rdata: y'
)
EVENTS = """async ([text, size]) => {
  const { events } = await import("/page/sse.js");
  const bytes = new TextEncoder().encode(text);
  const start = (controller) => {
    for (let i = 0; i < bytes.length; i += size) controller.enqueue(bytes.slice(i, i + size));
    controller.close();
  };
  const found = [];
  for await (const event of events(new ReadableStream({ start }))) found.push(event);
  return found;
}"""


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_events_wherever_the_stream_is_cut(person: Visit, size: int) -> None:
    assert await person.page.evaluate(EVENTS, [STREAM, size]) == [
        {"data": '{"a": 1}'},
        {"comment": f"server-timing: {TIMING}"},
        {"data": "x\né😀"},
    ]


async def test_a_timing(person: Visit) -> None:
    script = "(value) => import('/page/timing.js').then((timing) => timing.parseTiming(value))"
    found = await person.page.evaluate(script, TIMING + ', odd, x;dur=abc, y;desc="a, \\"b";dur=3')
    grid = {"column_count": 3, "row_count": 2, "has_thumbnail": True, "width": 1200, "height": 800}
    assert found["images"][:3] == [{"source": "encoded", **grid}, {"source": "llm"}, None]
    assert found["images"][3]["has_thumbnail"] is False
    assert found["stages"]["y"] == 3
    assert "x" not in found["stages"]


async def test_the_stages_fill_the_whole_time(person: Visit) -> None:
    script = """async (value) => {
      const { breakdown, parseTiming } = await import("/page/timing.js");
      return breakdown(parseTiming(value).stages);
    }"""
    parts = {part["stage"]: part for part in await person.page.evaluate(script, TIMING)}
    assert list(parts) == ["fetch", "preprocess", "queue", "forward", "travel", "other"]
    assert parts["travel"]["ms"] == pytest.approx(8.5)
    assert sum(part["ms"] for part in parts.values()) == pytest.approx(400)
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1)


ROWS = "| a | b |\n|---|:-:|\n" + "".join(f"| row {i} | *{i}* |\n" for i in range(12))
ITEMS = "".join(f"{i}. item **{i}**\n" for i in range(1, 12))
LOOSE = "".join(f"- item {i}\n\n  more `{i}`\n\n" for i in range(9))
NESTED = "".join(f"- item {i}\n  - below\n    - deeper\n" for i in range(9))
LINES = "".join(f"line {i} has *words*, and 2. is no item\n" for i in range(60))
CODE = "```py\n" + "".join(f"x = {i}\n\ny = `{i}`\n" for i in range(120)) + "```\n"
TEXTS = [
    *(ROWS + "\nend", ITEMS + "\n" + LOOSE, NESTED + "\n> q\n> r\n\nlazy", LINES, LINES + ROWS),
    *(CODE + ITEMS + CODE, "Title\n===\n\n---\n~~~\na\n~~~\n", "text\n```\nan open fence"),
    *("[x]: https://e.org\n\nsee [x]\n", "1. a\n\n   ```js\n   k\n   ```\n\n2. b\n\n1) c\n"),
    *(
        "<div>\nraw **b**\n</div>\n\n    code\n\n- [x] d\n",
        "````\n```\nin\n```\n````\n| no | table",
    ),
]
# Shows a text in pieces, each as if a frame had passed, and at once: the same must come of both.
GROWN = """async ([text, size]) => {
  const { Markdown } = await import("/page/markdown.js");
  const frame = () => new Promise((resolve) => setTimeout(resolve));
  const waiting = [];
  const real = [window.requestAnimationFrame, performance.now];
  let clock = 0;
  window.requestAnimationFrame = (show) => waiting.push(show);
  performance.now = () => (clock += 1e6);
  try {
    const shown = [];
    for (const step of [size, text.length]) {
      const markdown = new Markdown(document.createElement("div"));
      for (let i = 0; i < text.length; i += step) {
        markdown.append(text.slice(i, i + step));
        waiting.splice(0).forEach((show) => show());
        if (i % 200 < step) await frame();
      }
      markdown.finish();
      shown.push(markdown.element.innerHTML.replace(/<\\/?p>/g, " ").replace(/\\s+/g, " "));
    }
    return shown.map((html) => html.replace(/> /g, ">").replace(/ </g, "<"));
  } finally {
    [window.requestAnimationFrame, performance.now] = real;
  }
}"""


@pytest.mark.parametrize("size", [1, 5, 90])
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
async def test_markdown_that_grows_is_markdown(person: Visit, text: str, size: int) -> None:
    grown, whole = await person.page.evaluate(GROWN, [text, size])
    assert grown == whole


JSON_TEXTS = [
    '{"a":[1,{"b":"x\\"{,"}],"e":{},"l":[ ],"n":-1.5,"t":true}',
    '[{"id": 12345678901234567890}, "\\\\", "é😀"]',
    "0",
]
SET_OUT = """async (text) => {
  const { AnswerView } = await import("/page/answer.js");
  const view = AnswerView.of({ text, facts: { json: true } });
  return view.element.querySelector("code").textContent;
}"""


@pytest.mark.parametrize("text", JSON_TEXTS)
async def test_json_is_set_out(person: Visit, text: str) -> None:
    expected = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    assert await person.page.evaluate(SET_OUT, text) == expected


@pytest.mark.parametrize("text", ["1.50", '{"a": [1, '])
async def test_numbers_and_what_is_cut_stay_as_they_are(person: Visit, text: str) -> None:
    assert await person.page.evaluate(SET_OUT, text) == text


PICTURE = {"id": "p", "kind": "file", "name": "a b.png", "url": "", "width": 8, "height": 6}
QUESTION = {"id": "1", "role": "user", "text": "What?", "pictures": [PICTURE]}
ANSWER = {"id": "2", "role": "assistant", "text": "This.", "pictures": [], "state": "done"}
CONVERSATION: dict[str, Any] = {"id": "c", "title": "T", "created": 5, "turns": [QUESTION, ANSWER]}
ROUND = """async (conversation) => {
  const { exportConversation, importConversation } = await import("/page/exports.js");
  const [picture] = conversation.turns[0].pictures;
  picture.blob = new Blob(["bytes"], { type: "image/png" });
  const file = await exportConversation(conversation);
  const imported = await importConversation(file);
  const { blob } = imported.turns[0].pictures[0];
  return [await file.text(), imported, blob.type, await blob.text()];
}"""
IMPORT = """(text) => import("/page/exports.js")
  .then(({ importConversation }) => importConversation(new Blob([text])))
  .then(({ turns }) => turns[0].pictures[0].blob.type, (error) => error.message)"""


async def exported(person: Visit) -> str:
    text: str = (await person.page.evaluate(ROUND, CONVERSATION))[0]
    return text


async def test_a_conversation_leaves_and_comes_back(person: Visit) -> None:
    options = {"system": "Be brief", "format": "text", "sampling": {"top_p": 0.5}}
    conversation = {**CONVERSATION, "options": options}
    _, imported, *picture = await person.page.evaluate(ROUND, conversation)
    assert picture == ["image/png", "bytes"]
    assert imported["id"] != "c"
    assert imported["options"] == {**options, "schema": "", "stop": ""}
    assert [turn["text"] for turn in imported["turns"]] == ["What?", "This."]
    assert imported["turns"][0]["pictures"][0]["name"] == "a b.png"


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("{", "", "not JSON"),
        ("internvl-conversation", "other", "no conversation"),
        ('"version":1', '"version":2', "version 2"),
        ('"role":"user"', '"role":"root"', "turns[0].role"),
        ('"state":"done"', '"state":"dreaming"', "turns[1].state"),
        ("base64,", "base64,%%", "turns[0].pictures[0].blob"),
        ('"width":8', '"width":"8"', "turns[0].pictures[0].width"),
        ('"turns":[', '"turns":3,"x":[', "conversation.turns"),
        # Opened by its address, a document would run as the page's own.
        ("image/png", "text/html", "application/octet-stream"),
        ("image/png", "image/svg+xml", "application/octet-stream"),
    ],
)
async def test_an_import_is_checked(person: Visit, old: str, new: str, sentence: str) -> None:
    text = await exported(person)
    assert old in text
    assert sentence in await person.page.evaluate(IMPORT, text.replace(old, new, 1))


SHOW_IMPORTED = """async (text) => {
  const { importConversation } = await import("/page/exports.js");
  const { AnswerView } = await import("/page/answer.js");
  const { created, turns } = await importConversation(new Blob([text]));
  AnswerView.of(turns[1]);
  return [new Date(created).toISOString().length, typeof created, Object.keys(Array.prototype)];
}"""


@pytest.mark.parametrize("created", ["1e300", '"2026-11-30"', '"never"', "{}"])
@pytest.mark.parametrize(
    "facts",
    [
        '{"pictures": 5, "toolCalls": [null]}',
        '{"toolCalls": [{"index": "__proto__", "name": "x"}, {"index": 4e9, "name": "x"}]}',
    ],
)
async def test_what_is_imported_can_be_shown(person: Visit, created: str, facts: str) -> None:
    text = (await exported(person)).replace('"created":5', f'"created":{created}')
    text = text.replace('"state":"done"', f'"state":"done","facts":{facts}')
    assert await person.page.evaluate(SHOW_IMPORTED, text) == [24, "number", []]


async def test_json_of_brackets_alone_stays_small(person: Visit) -> None:
    script = """async () => {
      const { AnswerView } = await import("/page/answer.js");
      const view = new AnswerView();
      view.begin({ json: true });
      view.append("[".repeat(10_000));
      view.finish();
      return view.element.textContent.length;
    }"""
    assert await person.page.evaluate(script) < 1_000_000


BIG_BODY = """async () => {
  const { chat } = await import("/page/api.js");
  const real = window.fetch;
  const url = "data:image/png;base64," + "A".repeat(100_000);
  const odd = url + '"';
  const request = { model: 'q"\\n', messages: [{ image_url: { url } }, url, odd], odd };
  let sent;
  window.fetch = async (path, { body }) => {
    sent = JSON.parse(await body.text());
    return new Response("data: [DONE]\\n\\n");
  };
  try {
    for await (const event of chat(request)) event;
  } finally {
    window.fetch = real;
  }
  const streamed = { stream: true, stream_options: { include_usage: true } };
  return JSON.stringify(sent) === JSON.stringify({ ...request, ...streamed });
}"""


async def test_a_body_of_pieces_is_the_requests_json(person: Visit) -> None:
    assert await person.page.evaluate(BIG_BODY)


FACTS = """async (facts) => {
  const { AnswerView } = await import("/page/answer.js");
  const { element } = AnswerView.of({ text: "This.", facts });
  const texts = (selector) => [...element.querySelectorAll(selector)].map((one) => one.textContent);
  return [texts(".answer-fact"), texts(".answer-pictures li")];
}"""
SMALL_PLAN = {"column_count": 1, "row_count": 1, "tile_count": 1, "token_count": 64}


@pytest.mark.parametrize(
    ("images", "pictures", "image_token_count", "fact", "lines"),
    [
        (
            [{"source": "encoded", "column_count": 3, "row_count": 2, "has_thumbnail": True}],
            [{"name": "a.png"}],
            1792,
            "1,792 from the picture (3×2+1, encoded now)",
            ["Picture 1a.png3×2+11,792 tokensencoded now"],
        ),
        # What vision was not asked for is known from the turn before, or planned.
        (
            [{"source": "llm"}, {"source": "llm"}],
            [
                {"name": "", "used": {"column_count": 2, "row_count": 1, "has_thumbnail": True}},
                {"name": "b", "plan": SMALL_PLAN},
            ],
            256,
            "256 from 2 pictures",
            [
                "Picture 12×1+1192 tokensthe LLM service still had it",
                "Picture 2b1×164 tokensthe LLM service still had it",
            ],
        ),
        ([], [{"name": "c"}], 300, "300 from the picture", ["Picture 1c"]),
    ],
)
async def test_of_which_picture_the_tokens_are(
    person: Visit,
    images: list[dict[str, Any]],
    pictures: list[dict[str, Any]],
    image_token_count: int,
    fact: str,
    lines: list[str],
) -> None:
    usage = {
        "prompt_tokens": 2000,
        "completion_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": image_token_count},
    }
    stages = {"first_token": 380.0, "decode": 1000.0, "total": 1380.0}
    facts = {"usage": usage, "pictures": pictures, "timing": {"stages": stages, "images": images}}
    shown, shown_lines = await person.page.evaluate(FACTS, facts)
    expected = ["2,000 prompt tokens", fact, "0 cached", "11 output", "first token 380 ms"]
    assert shown == [*expected, "10 tokens/s"]
    assert shown_lines == lines
