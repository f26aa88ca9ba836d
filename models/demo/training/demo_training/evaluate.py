"""The evaluation: asks an OpenAI endpoint questions that training held out, and counts.

An answer is right if it equals the expected one but for case and final punctuation. Follow-up
questions see the endpoint's own earlier answers.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

import grpc
import numpy as np
from openai import AsyncOpenAI
from pydantic import Field
from pydantic_settings import CliApp, SettingsConfigDict

from demo_training.askers import Asker, BlindAsker, Conversation, HTTPAsker
from demo_training.batches import CANVAS
from demo_training.samples import KIND_SHARES, Kind, Picture, Split, Turn, make_sample
from demo_training.scores import Scores
from protos.process.settings import Options

FINAL_PUNCTUATION = ".。!！?？ "
GREY = 128

Control = Literal["none", "swapped", "blank", "zeroed", "shuffled", "forgotten"]


class Settings(Options):
    """Options of an evaluation."""

    model_config = SettingsConfigDict(
        env_prefix="DEMO_EVALUATE_",
        cli_prog_name="python -m demo_training.evaluate",
    )

    base_url: str = "http://127.0.0.1:8000/v1"
    """The endpoint."""
    split: Split = "layouts"
    """What is held out."""
    kind: Kind | None = None
    """Kind of sample, e.g. "video"; default: each kind in its turn."""
    count: int = Field(default=200, ge=1)
    """Questions of each task in each language, if enough samples have them."""
    samples: int = Field(default=10_000, ge=1)
    """Most samples to draw."""
    seed: int = Field(default=0, ge=0)
    """First seed."""
    control: Control = "none"
    """What is done wrong on purpose: pictures swapped with another sample's or blank, the rows that
    the LLM service sees of them zeroed, tiles of large pictures shuffled, or follow-up questions
    asked with the turns before them forgotten."""
    llm_address: str = "127.0.0.1:50052"
    """The LLM service's own address, which the control "zeroed" needs."""
    concurrency: int = Field(default=4, ge=1)
    """Conversations at a time."""
    show_wrong: int = Field(default=0, ge=0)
    """How many wrong answers to print."""


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
    """Yields conversations, as the control wants them, until the rows have their questions."""
    asked: Counter[tuple[str, str]] = Counter()
    for seed in range(settings.seed, settings.seed + settings.samples):
        sample = make_sample(seed, kind=_kind(settings, seed), split=settings.split)
        for dialogue in sample.dialogues:
            for turns in _asked(settings.control, dialogue, sample.pictures):
                rows = [(turn.task, turn.language) for turn in turns]
                if min(asked[row] for row in rows) < settings.count:
                    asked.update(rows)
                    pictures = _shown(settings, sample.pictures, seed)
                    yield Conversation(pictures, turns, sample.system)


def _kind(settings: Settings, seed: int) -> Kind:
    kinds = list(KIND_SHARES)
    return settings.kind or kinds[seed % len(kinds)]


def _asked(
    control: Control, turns: tuple[Turn, ...], pictures: tuple[Picture, ...]
) -> Iterator[tuple[Turn, ...]]:
    """Yields the turns that a control asks together; none where it has no say."""
    is_large = any(max(picture.pixels.shape) > CANVAS for picture in pictures)
    if control == "forgotten":
        yield from ((turn,) for turn in turns[1:] if turn.task == "followup")
    elif control == "none" or (pictures and (control != "shuffled" or is_large)):
        yield turns


def _shown(settings: Settings, pictures: tuple[Picture, ...], seed: int) -> tuple[Picture, ...]:
    """Returns the pictures that a control shows in the place of the right ones."""
    match settings.control:
        case "swapped":
            other = seed + settings.samples * len(KIND_SHARES)  # of the same kind
            kind = _kind(settings, seed)
            return make_sample(other, kind=kind, split=settings.split).pictures
        case "blank":
            return tuple(replace(p, pixels=np.full_like(p.pixels, GREY)) for p in pictures)
        case "shuffled":
            return tuple(_shuffled(picture, seed) for picture in pictures)
    return pictures


def normalised(answer: str) -> str:
    """Returns an answer as it is compared."""
    return answer.strip().rstrip(FINAL_PUNCTUATION).casefold()


async def evaluate(settings: Settings) -> list[Answer]:
    """Asks everything, `concurrency` conversations at a time."""
    answers: list[Answer] = []
    source, drawing = conversations(settings), asyncio.Lock()

    async def drawn() -> Conversation | None:
        # Drawing takes long where rows are hard to fill; the answers and uploads go on meanwhile.
        async with drawing:
            return await asyncio.to_thread(next, source, None)

    async with _asker(settings) as asker:

        async def work() -> None:
            while (conversation := await drawn()) is not None:
                answers.extend(await _answers(asker, conversation))

        await asyncio.gather(*[work() for _ in range(settings.concurrency)])
    return answers


@asynccontextmanager
async def _asker(settings: Settings) -> AsyncIterator[Asker]:
    if settings.control == "zeroed":
        async with grpc.aio.insecure_channel(settings.llm_address) as channel:
            yield BlindAsker(channel)
    else:
        async with AsyncOpenAI(base_url=settings.base_url, api_key="none") as client:
            yield HTTPAsker(client, (await client.models.list()).data[0].id)


async def _answers(asker: Asker, conversation: Conversation) -> list[Answer]:
    texts: list[str] = []
    for _ in conversation.turns:
        texts.append(await asker.ask(conversation, texts))
    return [Answer(turn, text) for turn, text in zip(conversation.turns, texts, strict=True)]


def scores_of(answers: Iterable[Answer]) -> Scores:
    """Returns the scores by task, language and form."""
    scores = Scores()
    for answer in answers:
        scores.add((answer.turn.task, answer.turn.language, answer.turn.form), answer.is_right)
    return scores


def _short_rows(scores: Scores, count: int) -> list[str]:
    return [
        f"{task} {language}"
        for task in scores.tasks()
        for language in ("en", "zh")
        if scores.asked(task, language) < count
    ]


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
    return replace(picture, pixels=grid.reshape(rows * tile_height, columns * tile_width, 3))


def main() -> None:
    """Asks, and prints the table."""
    settings = CliApp.run(Settings)
    answers = asyncio.run(evaluate(settings))
    wrong = [answer for answer in answers if not answer.is_right]
    for answer in wrong[: settings.show_wrong]:
        turn = answer.turn
        print(f"{turn.task}: {turn.question!r} -> {answer.text!r}, not {turn.answer!r}")
    print(f"split {settings.split}, kind {settings.kind or 'all'}, control {settings.control}")
    scores = scores_of(answers)
    print(scores.table())
    if short := _short_rows(scores, settings.count):
        print(f"fewer than {settings.count} questions: {', '.join(short)}")


if __name__ == "__main__":
    main()
