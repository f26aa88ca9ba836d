"""The page in Chromium: frames while a long answer comes, and how it bears many large pictures."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog

from tests.benchmarks.report import Report
from tests.fakes import stack
from tests.page.browser import Visit, browser_path, running_browser, visiting
from tests.page.scripted import PacedLLM, long_answer
from tests.page.test_many_pictures import noisy_pictures

TOKEN_COUNT = 10_000
TOKENS_PER_SECOND = 500
PICTURE_COUNT = 50
COMPARED = f"""\
Headless Chromium without a GPU, which draws on the CPU that the gateway and the scripted service
run on, too. The answer: {TOKEN_COUNT:,} tokens at {TOKENS_PER_SECOND} a second, with all that
Markdown has and a code block of 2,000 lines. "Idle" is the empty page; "whole text anew" is the
same tokens at the same pace in the same page, but all Markdown so far made anew in each frame by
the same libraries, which is what a page does without further thought. The pictures: {PICTURE_COUNT}
noisy PNGs of 20 MB each, until all previews are there. Gaps between frames and the longest task in
milliseconds; 60 frames a second are 16.7."""
COUNT_FRAMES = """() => {
  const gaps = (window.frameGaps = []);
  let last = performance.now();
  window.counting = true;
  const count = (time) => {
    gaps.push(time - last);
    last = time;
    if (window.counting) requestAnimationFrame(count);
  };
  requestAnimationFrame(count);
}"""
FRAME_GAPS = "() => { window.counting = false; return window.frameGaps.slice(1); }"
WHOLE_TEXT_ANEW = """async ([texts, rate]) => {
  const { marked } = await import("/page/libraries/marked.esm.js");
  await import("/page/libraries/purify.min.js");
  const place = document.querySelector(".conversation-column");
  const begun = performance.now();
  for (let count = 0; count < texts.length; ) {
    await new Promise(requestAnimationFrame);
    count = Math.ceil((rate * (performance.now() - begun)) / 1000);
    place.innerHTML = DOMPurify.sanitize(marked.parse(texts.slice(0, count).join("")));
  }
}"""


def run(progress: Callable[[str], None]) -> Report:
    """Measures the page in the machine's Chromium.

    Raises:
        FileNotFoundError: there is none.
    """
    quiet = structlog.make_filtering_bound_logger(logging.WARNING)
    structlog.configure(wrapper_class=quiet)
    report = Report(
        title="The page: frames in Chromium",
        compared=COMPARED,
        columns=("what", "frames/s", "gap p50", "gap p99", "longest gap", "longest task"),
    )
    asyncio.run(_measure(report, progress))
    return report


async def _measure(report: Report, progress: Callable[[str], None]) -> None:
    path = browser_path()
    if path is None:
        raise FileNotFoundError("there is no Chromium here; PAGE_BROWSER names one")
    llm = PacedLLM(texts=long_answer(TOKEN_COUNT), tokens_per_second=TOKENS_PER_SECOND)
    async with stack(llm=llm) as gateway, running_browser(path) as browser:
        for name, act in (
            ("idle", _idle),
            ("a long answer", _answer),
            ("whole text anew", _whole_text_anew),
            (f"{PICTURE_COUNT} pictures of 20 MB", _pictures),
        ):
            progress(name)
            async with visiting(browser, gateway.url) as person:
                await _add(report, name, person, act)


async def _add(report: Report, name: str, person: Visit, act: Any) -> None:
    await person.page.evaluate("window.watched.longTasks = []")  # those of the page's start
    await person.page.evaluate(COUNT_FRAMES)
    started = time.perf_counter()
    await act(person)
    seconds = time.perf_counter() - started
    gaps = sorted(await person.page.evaluate(FRAME_GAPS))
    tasks = (await person.watched())["longTasks"]
    cells = [
        f"{1000 * len(gaps) / sum(gaps):.1f}",
        *(f"{_quantile(gaps, share):.0f}" for share in (0.5, 0.99, 1)),
        f"{max(tasks):.0f}" if tasks else "-",
    ]
    report.add(name, cells, {"frame_gaps": [gap / 1000 for gap in gaps], "whole": [seconds]})


async def _idle(person: Visit) -> None:
    await asyncio.sleep(5)


async def _answer(person: Visit) -> None:
    await person.ask("Tell me everything", wait=False)
    await person.answered(timeout_ms=120_000)


async def _whole_text_anew(person: Visit) -> None:
    await person.page.evaluate(WHOLE_TEXT_ANEW, [long_answer(TOKEN_COUNT), TOKENS_PER_SECOND])


async def _pictures(person: Visit) -> None:
    with tempfile.TemporaryDirectory() as folder:
        await person.attach(*noisy_pictures(Path(folder), PICTURE_COUNT))
        previews = person.page.locator(".pictures-list .pictures-thumbnail canvas")
        await previews.nth(PICTURE_COUNT - 1).wait_for(timeout=120_000)


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
