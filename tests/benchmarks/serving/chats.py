"""Conversations about several pictures over HTTP; the users take turns, so that prefixes age."""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from tests.benchmarks.crossover.figures import percentile_ms
from tests.benchmarks.crossover.workload import Workload
from tests.benchmarks.report import Report
from tests.benchmarks.serving.load import Turn, session, take_turn

Kind = Literal["questions", "pictures", "window"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Of each picture, beside the thumbnail: 1,792 tokens.
PATCH_COUNT = 6
COMPARED = """\
Users who talk in turn, one request at a time, so that all others have asked before one asks again.
"questions": all pictures come with the first turn, and later turns add a question each. "pictures":
the first turn has one, and each further one adds another until there are as many as the row says;
the last of these turns has all its pictures but one in common with the turn before. "window": each
turn has so many pictures, all but one as before: the oldest is left out, so the prompts differ from
their first picture on, and no exact cache has more of them than what comes before it.
Milliseconds to the first token, p50 / p99; cached are the prompts' tokens that were in a cache."""


@dataclass(frozen=True)
class Chats:
    """Conversations of one kind.

    Attributes:
        kind: as COMPARED tells.
        user_count, turn_count: how many, and how long they are.
        picture_count: most pictures in one prompt.
        patch_count: each picture's cap of tiles.
    """

    kind: Kind
    user_count: int
    turn_count: int
    picture_count: int
    patch_count: int = PATCH_COUNT

    def __str__(self) -> str:
        sizes = f"{self.user_count} users x {self.turn_count} turns, {self.picture_count} pictures"
        return f"{self.kind}: {sizes}"


class _Chat:
    """One user's conversation."""

    def __init__(self, workload: Workload, chats: Chats, user: int) -> None:
        self._workload = replace(workload, picture_count=1, seed=f"{workload.seed} {chats} {user}")
        self._chats = chats
        first_count = 1 if chats.kind == "pictures" else chats.picture_count
        self.question: dict[str, Any] = json.loads(self._workload.question(0).body)
        contents = [self._content(number) for number in range(1, first_count)]
        images = [image for image, _ in contents]
        self._messages[0]["content"] = [*images, *self._content(0)]

    @property
    def _messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = self.question["messages"]
        return messages

    @property
    def _images(self) -> list[tuple[list[Any], Any]]:
        """The pictures in order, each with the content that it is in."""
        contents = [message["content"] for message in self._messages if message["role"] == "user"]
        return [(parts, part) for parts in contents for part in parts if part["type"] != "text"]

    def go_on(self, answer: str, turn: int) -> None:
        """Adds the answer to the last question, and the next one."""
        image, text = self._content(100 + turn)
        has_room = len(self._images) < self._chats.picture_count
        if self._chats.kind == "window":
            content, oldest = self._images[0]
            content.remove(oldest)
        is_added = self._chats.kind == "window" or (self._chats.kind == "pictures" and has_room)
        self._messages.extend(
            [
                {"role": "assistant", "content": answer},
                {"role": "user", "content": [image, text] if is_added else [text]},
            ]
        )

    def _content(self, number: int) -> list[dict[str, Any]]:
        """Returns a new picture, and a text."""
        body = json.loads(self._workload.question(number).body)
        image, text = body["messages"][0]["content"]
        image["image_url"]["max_dynamic_patch"] = self._chats.patch_count
        return [image, text]


def run_chats(url: str, workload: Workload, chats: Chats) -> list[list[Turn]]:
    """Returns the turns of all users, first turns first.

    Raises:
        ValueError: an answer broke off.
    """
    return asyncio.run(_run(url, workload, chats))


async def _run(url: str, workload: Workload, chats: Chats) -> list[list[Turn]]:
    users = [_Chat(workload, chats, user) for user in range(chats.user_count)]
    rounds: list[list[Turn]] = []
    async with session() as http:
        for _ in range(chats.turn_count):
            if rounds:
                for user, turn in zip(users, rounds[-1], strict=True):
                    user.go_on(turn.text, len(rounds))
            rounds.append([await take_turn(http, url, user.question) for user in users])
    return rounds


def chats_report() -> Report:
    """Returns the table of the chats, yet without a row."""
    columns = ("chats", "prompt", "cached", "TTFT", "over the first turn")
    return Report("chats over HTTP", COMPARED, columns)


def add_chats(report: Report, case: str, rounds: Sequence[Sequence[Turn]]) -> None:
    """Adds a row for each turn."""
    first = statistics.median(turn.seconds for turn in rounds[0])
    for number, turns in enumerate(rounds, 1):
        seconds = [turn.seconds for turn in turns]
        cells = [
            f"{statistics.median(turn.prompt_token_count for turn in turns):.0f}",
            f"{statistics.median(turn.cached_token_count for turn in turns):.0f}",
            f"{percentile_ms(seconds, 50):.1f} / {percentile_ms(seconds, 99):.1f}",
            f"{statistics.median(seconds) / first:.3f}",
        ]
        raw = {"TTFT": [round(one, 5) for one in seconds]}
        report.add(f"{case}, turn {number}", cells, raw)
