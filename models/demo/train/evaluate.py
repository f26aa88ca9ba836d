"""The evaluation: asks an OpenAI endpoint questions that training held out, and counts.

An answer is right if it equals the expected one but for case and final punctuation. Follow-up
questions see the endpoint's own earlier answers.
"""

from __future__ import annotations

import asyncio
import base64
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal

import numpy as np
from openai import AsyncOpenAI
from PIL import Image
from pydantic import Field
from pydantic_settings import CliApp, SettingsConfigDict

from models.demo.train.batches import CANVAS
from models.demo.train.options import Options
from models.demo.train.samples import Kind, Picture, Sample, Split, Turn, make_sample
from models.demo.train.scores import Scores

FINAL_PUNCTUATION = ".。!！?？ "
MAX_ANSWER_TOKENS = 96
GREY = 128

Control = Literal["none", "swapped", "blank", "shuffled", "forgotten"]


class Settings(Options):
    """Options of an evaluation."""

    model_config = SettingsConfigDict(
        env_prefix="DEMO_EVALUATE_",
        cli_prog_name="python -m models.demo.train.evaluate",
    )

    base_url: str = "http://127.0.0.1:8000/v1"
    """The endpoint."""
    split: Split = "layouts"
    """What is held out."""
    kind: Kind | None = None
    """Kind of sample, e.g. "video"; default: all kinds as training mixes them."""
    count: int = Field(default=200, ge=1)
    """Questions of each task in each language, if enough samples have them."""
    samples: int = Field(default=2000, ge=1)
    """Most samples to draw."""
    seed: int = Field(default=0, ge=0)
    """First seed."""
    control: Control = "none"
    """What is done wrong on purpose: pictures swapped with another sample's or blank, quarters of
    large pictures shuffled, or the first turn forgotten and only the second one asked."""
    concurrency: int = Field(default=4, ge=1)
    """Conversations at a time."""
    show_wrong: int = Field(default=0, ge=0)
    """How many wrong answers to print."""


@dataclass(frozen=True)
class Conversation:
    """What is asked in turn about some pictures."""

    pictures: tuple[Picture, ...]
    turns: tuple[Turn, ...]
    system: str | None


@dataclass(frozen=True)
class Answer:
    """What the endpoint said to a question."""

    turn: Turn
    text: str

    @property
    def is_right(self) -> bool:
        """Whether it is the expected answer."""
        return normalised(self.text) == normalised(self.turn.answer)


def conversations(settings: Settings) -> Iterator[Conversation]:
    """Yields conversations until every row of the table has its questions."""
    asked: Counter[tuple[str, str]] = Counter()
    for seed in range(settings.seed, settings.seed + settings.samples):
        sample = make_sample(seed, kind=settings.kind, split=settings.split)
        for turns in sample.dialogues:
            rows = [(turn.task, turn.language) for turn in turns]
            if min(asked[row] for row in rows) < settings.count:
                asked.update(rows)
                conversation = Conversation(sample.pictures, turns, sample.system)
                yield from _controlled(conversation, settings, seed)


def normalised(answer: str) -> str:
    """Returns an answer as it is compared."""
    return answer.strip().rstrip(FINAL_PUNCTUATION).casefold()


async def evaluate(settings: Settings) -> list[Answer]:
    """Asks everything, `concurrency` conversations at a time."""
    answers: list[Answer] = []
    source = conversations(settings)
    async with AsyncOpenAI(base_url=settings.base_url, api_key="none") as client:
        model = (await client.models.list()).data[0].id

        async def work() -> None:
            for conversation in source:
                answers.extend(await _ask(client, model, conversation))

        await asyncio.gather(*[work() for _ in range(settings.concurrency)])
    return answers


def scores_of(answers: Iterable[Answer]) -> Scores:
    """Returns the scores by task, language and form."""
    scores = Scores()
    for answer in answers:
        scores.add((answer.turn.task, answer.turn.language, answer.turn.form), answer.is_right)
    return scores


async def _ask(client: AsyncOpenAI, model: str, conversation: Conversation) -> list[Answer]:
    system = conversation.system
    messages: list[Any] = [] if system is None else [{"role": "system", "content": system}]
    images = [_image_part(picture) for picture in conversation.pictures]
    answers = []
    for turn in conversation.turns:
        question = {"type": "text", "text": turn.question}
        messages.append({"role": "user", "content": [question, *images]})
        images = []  # all pictures belong to the first question
        completion = await client.chat.completions.create(
            model=model, messages=messages, temperature=0, max_tokens=MAX_ANSWER_TOKENS
        )
        text = completion.choices[0].message.content or ""
        messages.append({"role": "assistant", "content": text})
        answers.append(Answer(turn, text))
    return answers


def _controlled(
    conversation: Conversation, settings: Settings, seed: int
) -> Iterator[Conversation]:
    """Yields the conversation as the control wants it, or nothing where the control has no say."""
    pictures, turns = conversation.pictures, conversation.turns
    match settings.control:
        case "none":
            yield conversation
        case "swapped" if pictures:
            yield replace(conversation, pictures=_others(pictures, settings, seed))
        case "blank" if pictures:
            blank = tuple(_with_pixels(p, np.full_like(p.pixels, GREY)) for p in pictures)
            yield replace(conversation, pictures=blank)
        case "shuffled" if any(max(p.pixels.shape) > CANVAS for p in pictures):
            yield replace(conversation, pictures=tuple(_shuffled(p, seed) for p in pictures))
        case "forgotten" if pictures and len(turns) > 1:
            yield replace(conversation, turns=turns[1:2])


def _others(pictures: tuple[Picture, ...], settings: Settings, seed: int) -> tuple[Picture, ...]:
    """Returns the pictures of the next sample that has as many."""
    while True:
        seed += settings.samples
        other: Sample = make_sample(seed, kind=settings.kind, split=settings.split)
        if len(other.pictures) == len(pictures):
            return other.pictures


def _shuffled(picture: Picture, seed: int) -> Picture:
    """Returns the picture with its tiles in another order, each still upright."""
    height, width, _ = picture.pixels.shape
    rows, columns = max(1, height // CANVAS), max(1, width // CANVAS)
    tile_height, tile_width = height // rows, width // columns
    cells = picture.pixels[: rows * tile_height, : columns * tile_width]
    cells = cells.reshape(rows, tile_height, columns, tile_width, 3).swapaxes(1, 2)
    tiles = cells.reshape(-1, tile_height, tile_width, 3)
    order = [*range(len(tiles))]
    while len(order) > 1 and order == sorted(order):
        Random(seed).shuffle(order)
        seed += 1
    grid = tiles[order].reshape(rows, columns, tile_height, tile_width, 3).swapaxes(1, 2)
    return _with_pixels(picture, grid.reshape(rows * tile_height, columns * tile_width, 3))


def _with_pixels(picture: Picture, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Picture:
    return replace(picture, pixels=pixels)


def _image_part(picture: Picture) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(picture.pixels).save(file, "PNG", compress_level=1)
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def main() -> None:
    """Asks, and prints the table."""
    settings = CliApp.run(Settings)
    answers = asyncio.run(evaluate(settings))
    wrong = [answer for answer in answers if not answer.is_right]
    for answer in wrong[: settings.show_wrong]:
        turn = answer.turn
        print(f"{turn.task}: {turn.question!r} -> {answer.text!r}, not {turn.answer!r}")
    print(f"split {settings.split}, kind {settings.kind or 'all'}, control {settings.control}")
    print(scores_of(answers).table())


if __name__ == "__main__":
    main()
