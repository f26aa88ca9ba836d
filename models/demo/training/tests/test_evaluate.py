"""The evaluation against an endpoint that knows the answers, over real HTTP."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from PIL import Image

from demo_training.askers import Conversation
from demo_training.evaluate import (
    Control,
    Settings,
    conversations,
    evaluate,
    normalised,
    scores_of,
)
from tests.fakes import HIDDEN_SIZE, ScriptedLLM, running_llm

Message = dict[str, Any]
Answering = Callable[[list[Message]], str]


def settings(**changes: Any) -> Settings:
    return Settings(**{"samples": 3, "kind": "single", "split": "layouts", **changes})


@asynccontextmanager
async def endpoint(answering: Answering) -> AsyncIterator[str]:
    """Serves an OpenAI endpoint that answers by a function of the messages; yields its URL."""

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "demo", "object": "model"}]})

    async def complete(request: web.Request) -> web.Response:
        body = await request.json()
        message = {"role": "assistant", "content": answering(body["messages"])}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return web.json_response(
            {"id": "1", "object": "chat.completion", "created": 0, "model": "demo",
             "choices": [choice]}
        )  # fmt: skip

    app = web.Application(client_max_size=2**26)
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/completions", complete)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/v1"
    finally:
        await runner.cleanup()


def knowing(asked: list[Conversation], spoil: str = "") -> Answering:
    """Returns what answers each known conversation rightly, but for an added text."""
    answers = {
        (turns[0].question, count): turns[count].answer
        for turns in (conversation.turns for conversation in asked)
        for count in range(len(turns))
    }

    def answer(messages: list[Message]) -> str:
        spoken = [message for message in messages if message["role"] == "user"]
        return answers[spoken[0]["content"][0]["text"], len(spoken) - 1].upper() + spoil

    return answer


async def test_right_answers_score_whatever_their_case() -> None:
    async with endpoint(knowing(list(conversations(settings())))) as url:
        answers = await evaluate(settings(base_url=url))
    assert len(answers) > 10
    assert scores_of(answers).share() == 100


async def test_wrong_answers_are_counted() -> None:
    async with endpoint(knowing(list(conversations(settings())), spoil=" not")) as url:
        assert scores_of(await evaluate(settings(base_url=url))).share() == 0


async def test_the_pictures_arrive_with_the_first_question_only() -> None:
    seen: list[list[int]] = []

    def look(messages: list[Message]) -> str:
        messages = [message for message in messages if message["role"] == "user"]
        seen.append([len(message["content"]) - 1 for message in messages])
        for part in messages[-1]["content"][1:]:
            data = part["image_url"]["url"].removeprefix("data:image/png;base64,")
            assert Image.open(io.BytesIO(base64.b64decode(data))).size == (448, 448)
        return ""

    async with endpoint(look) as url:
        await evaluate(settings(base_url=url, kind="pair", samples=8))
    assert seen
    assert all(counts == [2, *[0] * (len(counts) - 1)] for counts in seen)
    assert any(len(counts) > 1 for counts in seen)


def test_normalised_drops_case_and_final_punctuation() -> None:
    assert normalised(" A Fox. ") == normalised("a fox") == "a fox"
    assert normalised("是的。") == "是的"
    assert normalised("3.5") != normalised("35")


def test_a_row_gets_no_more_questions_than_asked_for() -> None:
    few = list(conversations(settings(count=1, samples=20)))
    many = list(conversations(settings(count=100, samples=20)))
    assert 0 < len(few) < len(many) / 2


@pytest.mark.parametrize("control", ["swapped", "blank"])
def test_controls_change_the_pictures_and_not_the_questions(control: Control) -> None:
    plain = list(conversations(settings()))
    wrong = list(conversations(settings(control=control)))
    assert [item.turns for item in wrong] == [item.turns for item in plain]
    for one, other in zip(plain, wrong, strict=True):
        assert not np.array_equal(one.pictures[0].pixels, other.pictures[0].pixels)


def test_shuffled_tiles_are_the_same_tiles_elsewhere() -> None:
    plain = list(conversations(settings(kind="tiles")))
    wrong = list(conversations(settings(kind="tiles", control="shuffled")))
    assert len(plain) == len(wrong)
    for one, other in zip(plain, wrong, strict=True):
        before, after = one.pictures[0].pixels, other.pictures[0].pixels
        assert not np.array_equal(before, after)
        assert np.array_equal(np.sort(before, axis=None), np.sort(after, axis=None))


def test_forgotten_asks_each_follow_up_alone() -> None:
    plain = list(conversations(settings(samples=30)))
    wrong = list(conversations(settings(samples=30, control="forgotten")))
    assert wrong
    assert [item.turns for item in wrong] == [
        (turn,) for item in plain for turn in item.turns[1:] if turn.task == "followup"
    ]


def test_without_a_kind_each_kind_has_its_turn() -> None:
    asked = list(conversations(settings(samples=6, kind=None)))
    assert {len(item.pictures) for item in asked} == {0, 1, 2, 6}


async def test_zeroed_sends_rows_of_zeros_for_every_picture() -> None:
    llm = ScriptedLLM()
    async with running_llm(llm) as address:
        answers = await evaluate(
            settings(samples=6, kind=None, control="zeroed", llm_address=address)
        )
    assert {answer.text for answer in answers} == {"Hello"}
    assert {len(start.images) for start in llm.starts} == {1, 2, 6}
    for start in llm.starts:
        parts = [part for message in start.chat.messages for part in message.parts]
        assert sum(part.HasField("image") for part in parts) == len(start.images)
    row_counts = {len(table) // (4 * HIDDEN_SIZE) for table in llm.held.values()}
    assert row_counts in ({256, 768}, {256, 1280})  # a tile; the tiles of the large picture
    assert not any(any(table) for table in llm.held.values())
