"""What it costs that a replica does not have the picture: one hop to vision, or an encoding."""

from __future__ import annotations

import asyncio
import random

import aiohttp

from tests.benchmarks.crossover.arrangements import Deployment
from tests.benchmarks.crossover.clients import Answer, ask
from tests.benchmarks.crossover.figures import percentile_ms
from tests.benchmarks.crossover.workload import photos
from tests.benchmarks.replicas.questions import NamedPictures
from tests.benchmarks.replicas.stack import FIRST_ALONE, SECOND_ALONE
from tests.benchmarks.report import Report

PICTURE_COUNT, QUICK_PICTURE_COUNT, WARM_UP_COUNT = 30, 8, 2
TITLE = "A picture that the LLM replica has not: ms to the first token"
COMPARED = (
    "One request at a time, about one picture of 13 tiles with other words: nobody has seen it; the"
    " LLM replica has it; another LLM replica has not, but vision has. One token out; the 8B on"
    " H200s, whose times the engines sleep."
)
CASES = ("first seen: ViT, way, prompt", "hit: the words alone", "miss: way, prompt, no ViT")


def misses(deployment: Deployment, slowness: float, picture_count: int) -> Report:
    """Returns first tokens of hits and misses, of so many pictures."""
    found = asyncio.run(_ask(deployment, WARM_UP_COUNT + picture_count))[WARM_UP_COUNT:]
    report = Report(TITLE, COMPARED, ("case", "p50", "p99", "answers", "failed"))
    for case, answers in zip(CASES, zip(*found, strict=True), strict=True):
        whole = [one.first_token_seconds / slowness for one in answers if not one.error]
        middle, high = (f"{percentile_ms(whole, percent):.0f}" for percent in (50, 99))
        failed = str(len(answers) - len(whole))
        report.add(case, (middle, high, str(len(whole)), failed), {"first token": whole})
    return report


async def _ask(deployment: Deployment, picture_count: int) -> list[list[Answer]]:
    """Returns the answers by picture, in the order of CASES."""
    urls = [deployment.urls[way] for way in (FIRST_ALONE, FIRST_ALONE, SECOND_ALONE)]
    workload = NamedPictures(deployment.model, photos(13, shrink=8), 1, 1, "misses", _third)
    found = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as http:
        for picture in range(picture_count):
            bodies = [workload.question(3 * picture + case).body for case in range(len(CASES))]
            found.append([await ask(http, *one) for one in zip(urls, bodies, strict=True)])
    return found


def _third(_: random.Random, number: int) -> str:
    """Names the same picture for three requests in a row."""
    return str(number // 3)
