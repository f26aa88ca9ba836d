"""Clients in processes of their own: a load for some time, and conversations of two turns."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import count
from typing import Any

import aiohttp

from protos.process.logs import new_request_id
from tests.benchmarks.crossover.clients import PAUSE_SECONDS, Answer, ask, receive
from tests.benchmarks.crossover.workload import Workload

# Until all client processes have their share.
LEAD_SECONDS = 0.3
# Of each client: the first requests of many come all at once.
LEAST_ANSWER_COUNT = 2


@dataclass(frozen=True)
class Load:
    """Clients in a closed loop: each sends its next request when the one before has been answered.

    Attributes:
        workload: what is asked.
        client_count: how many clients ask at a time.
        seconds: for so long requests are sent, of each client LEAST_ANSWER_COUNT or more; all are
            answered.
    """

    workload: Workload
    client_count: int
    seconds: float


def run_load(clients: Executor, process_count: int, url: str, load: Load) -> list[Answer]:
    """Returns the answers to a load that so many processes send together."""
    begin = time.time() + LEAD_SECONDS
    shares = [range(load.client_count)[index::process_count] for index in range(process_count)]
    runs = [clients.submit(_run_share, url, load, share, begin) for share in shares]
    return [answer for run in runs for answer in run.result()]


def _run_share(url: str, load: Load, share: Sequence[int], begin: float) -> list[Answer]:
    return asyncio.run(_ask_side_by_side(url, load, share, begin))


async def _ask_side_by_side(
    url: str, load: Load, share: Sequence[int], begin: float
) -> list[Answer]:
    async with session() as http:
        runs = (_ask_in_turn(http, url, load, client, begin) for client in share)
        answers = await asyncio.gather(*runs)
    return [answer for own in answers for answer in own]


async def _ask_in_turn(
    http: aiohttp.ClientSession, url: str, load: Load, client: int, begin: float
) -> list[Answer]:
    answers: list[Answer] = []
    for number in count(client, load.client_count):
        body = load.workload.question(number).body
        await asyncio.sleep(begin - time.time())
        answers.append(await ask(http, url, body))
        if answers[-1].error:
            await asyncio.sleep(PAUSE_SECONDS)
        if time.time() >= begin + load.seconds and len(answers) >= LEAST_ANSWER_COUNT:
            break
    return answers


def run_turns(url: str, workload: Workload, conversation_count: int) -> list[tuple[float, float]]:
    """Returns the seconds to the first token of both turns of each conversation, one at a time.

    Raises:
        ValueError: an answer broke off.
    """
    return asyncio.run(_converse(url, workload, conversation_count))


@dataclass(frozen=True)
class Turn:
    """An answer in a conversation: seconds to its first token, its text, its prompt's tokens."""

    seconds: float
    text: str
    prompt_token_count: int
    cached_token_count: int


async def _converse(
    url: str, workload: Workload, conversation_count: int
) -> list[tuple[float, float]]:
    async with session() as http:
        return [
            await _two_turns(http, url, workload, number) for number in range(conversation_count)
        ]


async def _two_turns(
    http: aiohttp.ClientSession, url: str, workload: Workload, number: int
) -> tuple[float, float]:
    question: dict[str, Any] = json.loads(workload.question(number).body)
    first = await take_turn(http, url, question)
    text = workload.text(random.Random(f"{workload.seed} {number} again"))
    question["messages"] += [
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": text},
    ]
    second = await take_turn(http, url, question)
    return first.seconds, second.seconds


async def take_turn(http: aiohttp.ClientSession, url: str, question: Mapping[str, Any]) -> Turn:
    """Asks a question.

    Raises:
        ValueError: the answer broke off.
    """
    stream = await receive(http, url, json.dumps(question).encode(), new_request_id())
    chunks = [json.loads(event) for event in stream.events()]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    text = "".join(delta.get("content") or "" for delta in deltas)
    usage = next(chunk["usage"] for chunk in chunks if chunk.get("usage"))
    details = usage.get("prompt_tokens_details") or {}
    return Turn(
        stream.arrivals[0] - stream.sent,
        text,
        usage["prompt_tokens"],
        details.get("cached_tokens", 0),
    )


def session() -> aiohttp.ClientSession:
    """Returns one for as many requests as are sent, however long they take."""
    connector = aiohttp.TCPConnector(limit=0)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
