"""What the page can do, over scripted services: what arrives there is looked at."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from playwright.async_api import Route, expect

from models.demo.__main__ import PICTURES
from protos.internvl.v1 import llm_pb2
from tests.fakes import MODEL, stack
from tests.page.browser import DESKTOP, Visit
from tests.page.conftest import Visiting
from tests.page.scripted import PacedLLM

pytestmark = pytest.mark.asyncio(loop_scope="session")

SCENE, SIGN, LARGE = (PICTURES / f"{name}.png" for name in ("scene", "sign", "large"))
CARDS = ".pictures-list .pictures-card"
# Puts a file on the page as a drop or a paste does: `[kind, name, base64]`.
GIVE = """([kind, name, base64]) => {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, {type: "image/png"}));
  const target = document.querySelector("#question");
  const options = {bubbles: true, cancelable: true};
  if (kind === "paste") {
    target.dispatchEvent(new ClipboardEvent("paste", {...options, clipboardData: data}));
    return;
  }
  for (const type of ["dragenter", "dragover", "drop"]) {
    target.dispatchEvent(new DragEvent(type, {...options, dataTransfer: data}));
  }
}"""
# Records a square that moves 100 times, however long that takes, and returns the video in base64.
RECORD = """async () => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [320, 240];
  const context = canvas.getContext("2d");
  let x = 0;
  const draw = () => {
    context.fillStyle = "white";
    context.fillRect(0, 0, 320, 240);
    context.fillStyle = "red";
    context.fillRect((x += 2), 100, 40, 40);
  };
  draw();
  const recorder = new MediaRecorder(canvas.captureStream(25), {mimeType: "video/webm"});
  const pieces = [];
  recorder.ondataavailable = ({data}) => pieces.push(data);
  const ended = new Promise((resolve) => (recorder.onstop = resolve));
  recorder.start();
  while (x < 200) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    draw();
  }
  recorder.stop();
  await ended;
  const bytes = new Uint8Array(await new Blob(pieces).arrayBuffer());
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}"""
# How often the page asks for the status, twice over.
LONG_SECONDS = 8.5
# All that has text on the page; what was read out is not said once more.
SEEN = ".strip-facts, .turn .question, .answer-body, .answer-facts, .answer-actions, #composer"
# Words of Latin letters that are the same in Chinese.
BOTH = {"scripted", "Hello", "ok", "LLM", "ViT", "Enter", "Shift", "token", "png", "ms"}


def said(start: llm_pb2.GenerateStart) -> list[tuple[str, str]]:
    """Returns the roles and texts of a request's messages; an image is a [picture]."""
    return [
        (
            llm_pb2.Role.Name(message.role).removeprefix("ROLE_").lower(),
            "".join("[picture]" if part.HasField("image") else part.text for part in message.parts),
        )
        for message in start.chat.messages
    ]


async def names(person: Visit) -> Sequence[str]:
    """Returns the cards' accessible names, in order."""
    cards = await person.page.locator(f"{CARDS} .pictures-show").all()
    return [(await card.get_attribute("aria-label")) or "" for card in cards]


@pytest.mark.parametrize("kind", ["drop", "paste"])
async def test_a_picture_is_dropped_or_pasted(visit: Visiting, kind: str) -> None:
    async with stack() as gateway, visit(gateway.url) as person:
        data = base64.b64encode(SCENE.read_bytes()).decode()
        await person.page.evaluate(GIVE, [kind, "scene.png", data])
        await expect(person.page.locator(CARDS)).to_have_count(1)
        await expect(person.page.locator(".pictures-drop")).to_have_count(0)
        await person.ask("What is there?")
        assert len(gateway.vision.requests) == 1
        assert gateway.vision.requests[0].image == SCENE.read_bytes()


@pytest.mark.slow
async def test_pictures_are_ordered_replaced_and_removed_by_keys(visit: Visiting) -> None:
    llm = PacedLLM(texts=["ok"])
    async with stack(llm=llm) as gateway, visit(gateway.url) as person:
        await person.attach(SCENE, SIGN, LARGE)
        await expect(person.page.locator(CARDS)).to_have_count(3)
        card = person.page.locator(f"{CARDS} .pictures-show")
        await card.first.focus()
        await person.page.keyboard.press("Alt+ArrowRight")
        assert [re.sub(r"Image-\d (\w+).*", r"\1", name) for name in await names(person)] == [
            *("sign", "scene", "large")
        ]
        await person.page.keyboard.press("Delete")  # the focus went along with scene
        await expect(person.page.locator(CARDS)).to_have_count(2)
        async with person.page.expect_file_chooser() as chooser:
            await person.page.locator(f"{CARDS} .pictures-replace").last.click(force=True)
        await (await chooser.value).set_files(SCENE)
        await expect(card.last).to_have_attribute("aria-label", re.compile("scene"))
        await person.ask("Which?")
        sent = [request.image for request in gateway.vision.requests]
        assert sorted(sent) == sorted([SIGN.read_bytes(), SCENE.read_bytes()])
        assert said(llm.starts[-1])[-1][1].count("[picture]") == 2


@pytest.mark.slow
async def test_a_camera_takes_a_picture(visit: Visiting) -> None:
    async with stack() as gateway, visit(gateway.url) as person:
        await person.add("camera")
        shutter = await person.button("camera.shutter")
        await shutter.click()
        await expect(person.page.locator(CARDS)).to_have_count(1)
        await person.ask("Who is there?")
        assert gateway.vision.requests[0].image[:3] == b"\xff\xd8\xff"


@pytest.mark.slow
async def test_a_video_becomes_labelled_frames(visit: Visiting, tmp_path: Path) -> None:
    llm = PacedLLM(texts=["ok"])
    async with stack(llm=llm) as gateway, visit(gateway.url) as person:
        film = tmp_path / "film.webm"
        film.write_bytes(base64.b64decode(await person.page.evaluate(RECORD)))
        async with person.page.expect_file_chooser() as chooser:
            await person.add("video")
        await (await chooser.value).set_files(film)
        dialog = person.page.locator("dialog.pictures-dialog")
        await dialog.locator("input[type=range]").fill("4")
        await (await person.button("video.take", count=4)).click()
        await expect(person.page.locator(CARDS)).to_have_count(4)
        await person.ask("What moves?")
        text = said(llm.starts[-1])[-1][1]
        assert [f"Frame{number}:" in text for number in range(1, 6)] == [True] * 4 + [False]
        assert len({request.image for request in gateway.vision.requests}) == 4
        assert {request.max_tile_count for request in gateway.vision.requests} == {1}


@pytest.mark.slow
async def test_detail_and_cap_are_sent(visit: Visiting) -> None:
    async with stack() as gateway, visit(gateway.url) as person:
        await person.attach(LARGE)
        await person.page.locator(f"{CARDS} .pictures-show").click()
        slider = person.page.locator("#tiles-cap")
        await slider.fill("5")
        await expect(person.page.locator("#inspector .tiles-sheet")).to_be_visible()
        await person.ask("What?")
        assert gateway.vision.requests[-1].max_tile_count == 5


async def test_settings_are_sent_and_kept(visit: Visiting) -> None:
    llm = PacedLLM(texts=['{"a": 1}'])
    async with stack(llm=llm) as gateway, visit(gateway.url) as person:
        await (await person.button("menu.settings")).click()
        fill = {
            "system": "Be brief.",
            "temperature": "0.5",
            "top_p": "0.9",
            "seed": "7",
            "stop": "END",
        }
        for name, value in fill.items():
            await person.page.locator(f"#drawer-{name}").fill(value)
        await person.page.locator("#drawer-format").select_option("json_object")
        await person.page.keyboard.press("Escape")
        await person.ask("Hello?")
        start = llm.starts[-1]
        assert said(start) == [("system", "Be brief."), ("user", "Hello?")]
        assert start.sampling.temperature == pytest.approx(0.5)
        assert start.sampling.top_p == pytest.approx(0.9)
        assert start.sampling.seed == 7
        assert list(start.stop.strings) == ["END"]
        assert start.HasField("guided")
        # JSON is set out, not read as Markdown.
        await expect(person.answer.locator(".answer-code code")).to_have_text('{\n  "a": 1\n}')
        await person.page.reload()
        await person.reopen()
        await expect(person.answer.locator(".answer-code code")).to_have_text('{\n  "a": 1\n}')
        await (await person.button("menu.settings")).click()
        await expect(person.page.locator("#drawer-system")).to_have_value("Be brief.")


async def test_a_bad_setting_is_said_before_anything_is_sent(visit: Visiting) -> None:
    llm = PacedLLM(texts=["no"])
    async with stack(llm=llm) as gateway, visit(gateway.url) as person:
        await (await person.button("menu.settings")).click()
        await person.page.locator("#drawer-top_p").fill("7")
        await person.page.keyboard.press("Escape")
        await person.question.fill("Hello?")
        await person.question.press("Enter")
        await expect(person.page.locator(".composer-problem")).to_contain_text("7")
        await expect(person.question).to_have_value("Hello?")
        assert llm.starts == []


@pytest.mark.slow
async def test_a_turn_is_changed_and_an_answer_asked_again(visit: Visiting) -> None:
    llm = PacedLLM(texts=["first"])
    async with stack(llm=llm) as gateway, visit(gateway.url) as person:
        await person.ask("One?", SCENE)
        await person.ask("Two?")
        llm.texts = ["another"]
        await (await person.button("answer.again")).last.click()
        await person.answered()
        await expect(person.answer).to_contain_text("another")
        assert [text for _, text in said(llm.starts[-1])][-3:] == ["[picture]One?", "first", "Two?"]

        await (await person.button("conversation.edit")).first.click()
        await expect(person.question).to_have_value("One?")
        await expect(person.page.locator(CARDS)).to_have_count(1)
        await person.page.locator(f"{CARDS} .pictures-remove").click(force=True)
        await person.question.fill("Changed?")
        await person.question.press("Enter")
        await expect(person.page.locator("article.answer")).to_have_count(1)
        await person.answered()
        assert said(llm.starts[-1])[-1] == ("user", "Changed?")


@pytest.mark.slow
async def test_conversations_are_kept_exported_imported_and_cleared(
    visit: Visiting, tmp_path: Path
) -> None:
    llm = PacedLLM(texts=["It is a **scene**."])
    exported = tmp_path / "conversation.json"
    async with stack(llm=llm) as gateway:
        async with visit(gateway.url) as person:
            await person.ask("What is it?", SCENE)
            await (await person.button("menu.more")).click()
            async with person.page.expect_download() as download:
                await (await person.button("menu.export")).click()
            await (await download.value).save_as(exported)
            await person.page.reload()
            await person.reopen()
            await expect(person.answer.locator("strong")).to_have_text("scene")
            await expect(person.page.locator(".pictures-strip canvas")).to_have_count(1)
            # All is gone, also after the next start.
            await (await person.button("menu.history")).click()
            for key in ("history.clear", "history.sure"):
                await (await person.button(key)).click()
            await expect(person.page.locator(".history-open")).to_have_count(0)
            await person.page.reload()
            await (await person.button("menu.history")).click()
            none = await person.words("history.none")
            await expect(person.page.locator("#history")).to_contain_text(none)
        async with visit(gateway.url) as person:  # somebody else's browser
            await import_file(person, exported)
            await expect(person.answer.locator("strong")).to_have_text("scene")
            await expect(person.page.locator(".pictures-strip canvas")).to_have_count(1)
            facts = person.answer.locator(".answer-facts")
            await expect(facts).to_contain_text("286")
            await person.ask("And now?")
            assert [text for _, text in said(llm.starts[-1])][-3:] == [
                *("[picture]What is it?", "It is a **scene**.", "And now?")
            ]


async def import_file(person: Visit, file: Path) -> None:
    await (await person.button("menu.history")).click()
    async with person.page.expect_file_chooser() as chooser:
        await (await person.button("history.import")).click()
    await (await chooser.value).set_files(file)


NO_CONVERSATIONS = (
    "no JSON",
    '{"format": "another"}',
    '{"format": "internvl-conversation", "version": 1, "conversation": {"turns": 7}}',
    '{"format": "internvl-conversation", "version": 1, "conversation": {"turns":'
    ' [{"role": "user", "text": "x", "pictures": [{"kind": "file", "blob": "javascript:"}]}]}}',
)


@pytest.mark.slow
async def test_a_file_that_is_no_conversation_is_said(visit: Visiting, tmp_path: Path) -> None:
    file = tmp_path / "conversation.json"
    async with stack() as gateway, visit(gateway.url) as person:
        for content in NO_CONVERSATIONS:
            file.write_text(content)
            await import_file(person, file)
            await expect(person.page.locator(".composer-problem")).not_to_be_empty()
            await expect(person.page.locator("article.answer")).to_have_count(0)
            await person.question.fill("x")  # a sentence stays until something changes
            await expect(person.page.locator(".composer-problem")).to_be_empty()


async def copied(person: Visit, form: str) -> str:
    """Returns what the menu copies of the request."""
    await person.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await (await person.button("menu.more")).click()
    await (await person.button(f"menu.{form}")).click()
    await expect(person.page.locator("#announcer")).to_have_text(await person.words("menu.copied"))
    text: str = await person.page.evaluate("navigator.clipboard.readText()")
    return text


@pytest.mark.slow
@pytest.mark.parametrize("form", ["curl", "python", "json"])
async def test_a_copied_request_runs(visit: Visiting, tmp_path: Path, form: str) -> None:
    picture = tmp_path / "a 'quoted' $name.png"
    picture.write_bytes(SCENE.read_bytes())
    question = 'It\'s "$HOME" `id` \\n 你好 🦊\nis it?'
    llm = PacedLLM(texts=["a fox"])
    async with stack(llm=llm) as gateway, visit(gateway.url) as person:
        await person.ask(question, picture)
        text = await copied(person, form)
        programs = {"curl": ["bash", "-c", text], "python": [sys.executable, "-c", text]}
        if form == "json":
            async with gateway.http.post("/v1/chat/completions", json=json.loads(text)) as answer:
                output = await answer.text()
        else:
            output = await run(programs[form], tmp_path)
        assert "a fox" in output
        first, second = llm.starts
        assert said(first) == said(second)
        assert said(second)[-1][1] == f"[picture]{question}"
        assert first.images == second.images


async def run(command: list[str], folder: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 120)
    return output.decode()


async def test_a_key_is_asked_for_and_kept_nowhere(visit: Visiting) -> None:
    key = "a-secret-of-nobody"
    seen: list[str | None] = []

    async def guard(route: Route) -> None:
        seen.append(await route.request.header_value("authorization"))
        if seen[-1] == f"Bearer {key}":
            await route.continue_()
        else:
            error = {"message": "a key is needed", "type": "authentication_error"}
            await route.fulfill(status=401, json={"error": error})

    async with stack(llm=PacedLLM(texts=["welcome"])) as gateway, visit(gateway.url) as person:
        person.expected.append("status of 401")
        await person.page.route("**/v1/chat/completions", guard)
        await person.ask("Hello?")
        await person.page.locator("#key-input").fill(key)
        await (await person.button("key.use")).click()
        await expect(person.answer).to_contain_text("welcome")
        assert seen == [None, f"Bearer {key}"]
        assert key not in await copied(person, "curl")
        kept = await person.page.evaluate(
            "async () => JSON.stringify({...localStorage, ...sessionStorage}) + document.cookie"
        )
        assert key not in kept
        await person.page.reload()
        await person.reopen()
        await person.ask("Still?")
        assert seen[-1] is None


async def test_a_gateway_with_keys_asks_for_one_when_the_page_opens(visit: Visiting) -> None:
    key, llm = "a-secret-of-nobody", PacedLLM(texts=["welcome"])
    async with stack(llm=llm, api_key=key) as gateway, visit(gateway.url) as person:
        person.expected.append("status of 401")
        strip = person.page.locator("#strip")
        field, hint = person.page.locator("#key-input"), person.page.locator("#key .field-hint")
        await expect(strip).to_contain_text(await person.words("strip.shut"))
        await expect(hint).to_have_text(await person.words("key.hint"))
        await field.fill("a-secret-of-another")
        await (await person.button("key.use")).click()
        await expect(hint).to_have_text(await person.words("key.refused"))
        await field.fill(key)
        await (await person.button("key.use")).click()
        await expect(strip).to_contain_text(MODEL)
        await person.ask("Hello?", SCENE)
        await expect(person.answer).to_contain_text("welcome")
        assert llm.starts


@pytest.mark.slow
async def test_a_gateway_with_keys_is_left_alone_until_there_is_one(visit: Visiting) -> None:
    async with stack(api_key="a-secret-of-nobody") as gateway, visit(gateway.url) as person:
        person.expected.append("status of 401")
        await (await person.button("key.cancel")).click()
        asked = len(person.requests)
        await asyncio.sleep(LONG_SECONDS)
        assert person.requests[asked:] == []
        await person.ask("Hello?", wait=False)
        await expect(person.page.locator("#key-input")).to_be_visible()


@pytest.mark.slow
async def test_language_and_theme_change_at_once_and_stay(visit: Visiting) -> None:
    async with stack(llm=PacedLLM(texts=["ok"])) as gateway, visit(gateway.url) as person:
        await person.ask("Hello?", SCENE)
        english = await seen(person)
        await (await person.button("menu.more")).click()
        await person.page.locator("input[name=menu-language][value=zh]").check()
        await person.page.locator("input[name=menu-theme][value=dark]").check()
        await person.page.keyboard.press("Escape")
        await expect(person.page.locator("html")).to_have_attribute("lang", "zh-CN")
        await expect(person.page.locator("html")).to_have_attribute("data-theme", "dark")
        chinese = await seen(person)
        assert words_in(chinese) & words_in(english) <= BOTH
        await person.page.reload()
        await expect(person.page.locator("html")).to_have_attribute("lang", "zh-CN")
        await expect(person.page.locator("html")).to_have_attribute("data-theme", "dark")


async def seen(person: Visit) -> str:
    """Returns the text that can be seen."""
    return "\n".join(await person.page.locator(SEEN).all_inner_texts())


def words_in(text: str) -> set[str]:
    """Returns the words of Latin letters."""
    return set(re.findall(r"[A-Za-z]{2,}", text))


async def test_a_whole_conversation_by_keys_alone(visit: Visiting) -> None:
    llm = PacedLLM(texts=["word "] * 400, tokens_per_second=50)
    async with stack(llm=llm) as gateway, visit(gateway.url) as person:
        keys = person.page.keyboard
        await expect(person.question).to_be_focused()
        await keys.press("Tab")  # to the button that adds pictures
        async with person.page.expect_file_chooser() as chooser:
            await keys.press("Enter")
            await expect(person.page.get_by_role("menuitem").first).to_be_focused()
            await keys.press("Enter")  # files
        await (await chooser.value).set_files(SCENE)
        await expect(person.page.locator(CARDS)).to_have_count(1)
        card = person.page.locator(f"{CARDS} .pictures-show")
        await reach(person, "Shift+Tab", card.get_by_role("button").or_(card))
        await keys.press("Enter")
        inspector = person.page.locator("#inspector")
        await expect(inspector).to_be_visible()
        await keys.press("Escape")
        await expect(inspector).to_be_hidden()
        await expect(card).to_be_focused()
        await reach(person, "Shift+Tab", person.question)
        await keys.type("What is there?")
        await keys.press("Enter")
        await expect(person.answer).to_contain_text("word word")
        await reach(person, "Shift+Tab", await person.button("answer.stop"))
        await keys.press("Enter")
        await person.answered()
        again = await person.button("answer.again")
        await expect(again).to_be_focused()
        llm.texts, llm.tokens_per_second = ["done"], 0
        await keys.press("Enter")
        await expect(person.answer).to_contain_text("done")
        await reach(person, "Shift+Tab", await person.button("menu.settings"))
        await keys.press("Enter")
        await expect(person.page.locator("#settings")).to_be_visible()
        await keys.press("Escape")
        await expect(await person.button("menu.settings")).to_be_focused()


async def reach(person: Visit, key: str, wanted: object) -> None:
    """Presses a key until an element has the focus."""
    for _ in range(40):
        if await wanted.evaluate("(element) => element === document.activeElement"):  # type: ignore[attr-defined]
            return
        await person.page.keyboard.press(key)
    raise AssertionError(f"{key} does not reach {wanted}")


@pytest.mark.slow
async def test_a_screen_reader_hears_begin_and_end(visit: Visiting) -> None:
    llm = PacedLLM(texts=["word "] * 60, tokens_per_second=60)
    async with stack(llm=llm) as gateway, visit(gateway.url) as person:
        await person.ask("Hello?", wait=False)
        status = person.answer.get_by_role("status")
        await expect(status).to_have_text(await person.words("answer.begun"))
        await person.answered()
        await expect(status).to_have_text(await person.words("answer.complete", count="60"))


@pytest.mark.slow
@pytest.mark.parametrize("viewport", [{"width": 360, "height": 740}, DESKTOP])
async def test_nothing_is_wider_than_the_screen(visit: Visiting, viewport: dict[str, int]) -> None:
    wide = "| " + " | ".join(f"column{number}" for number in range(30)) + " |\n"
    table = wide + "| --- " * 30 + "|\n" + wide
    llm = PacedLLM(texts=[table, "\n\n`", "x" * 300, "`\n\n", "y" * 300, "\n\n```\n", "z" * 300])
    async with stack(llm=llm) as gateway, visit(gateway.url, viewport=viewport) as person:
        await person.ask("w" * 300, SCENE, SIGN, LARGE)
        await person.page.locator(".answer-timing summary").click()
        width = await person.page.evaluate(
            "[document.documentElement.scrollWidth, document.querySelector('#main').scrollWidth,"
            " document.querySelector('#conversation').scrollWidth]"
        )
        assert max(width) <= viewport["width"]


@pytest.mark.slow
async def test_reduced_motion_moves_nothing(visit: Visiting) -> None:
    llm = PacedLLM(texts=["word "] * 30, tokens_per_second=30)
    async with stack(llm=llm) as gateway, visit(gateway.url, reduced_motion="reduce") as person:
        await person.attach(SCENE)
        await person.page.locator(f"{CARDS} .pictures-show").click()
        await person.ask("Hello?", wait=False)
        await (await person.button("menu.settings")).click()
        moving = await person.page.evaluate(
            "document.getAnimations().filter((one) => one.effect.getTiming().duration > 1)"
            ".map((one) => one.animationName ?? one.transitionProperty)"
        )
        assert moving == []
        await person.page.keyboard.press("Escape")
        await person.answered()


async def test_no_page_where_it_is_turned_off(visit: Visiting) -> None:
    async with stack(page=False) as gateway:
        assert (await gateway.get("/"))[0] == 404
