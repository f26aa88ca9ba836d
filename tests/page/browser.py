"""The machine's Chromium, and visits of the page on which nothing may go wrong unnoticed."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    Request,
    async_playwright,
    expect,
)
from playwright.async_api import (
    TimeoutError as PlaywrightTimeoutError,
)

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--disable-gpu",
    "--disable-background-networking",
    # What is not the gateway does not exist, whatever the page asks for.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    # A camera that shows a moving pattern, and asks nobody.
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)
# Long enough for a machine that runs other tests beside it.
WAIT_MS = 30_000
expect.set_options(timeout=WAIT_MS)
ANSWER_COUNT = "(count) => document.querySelectorAll('article.answer').length === count"
NOTHING_BUSY = "() => !document.querySelector('article.answer[aria-busy=true]')"
# What the browser itself asks for or shows without a request to anybody.
OWN_SCHEMES = ("blob:", "about:")
DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}

# Runs before the page's own code; tells what no console message tells.
WATCHER = """
window.watched = {violations: [], longTasks: [], ran: []};
document.addEventListener("securitypolicyviolation", (event) => {
  window.watched.violations.push(`${event.violatedDirective} ${event.blockedURI}`);
});
new PerformanceObserver((list) => {
  window.watched.longTasks.push(...list.getEntries().map((entry) => entry.duration));
}).observe({type: "longtask", buffered: true});
"""


def browser_path() -> str | None:
    """Returns where the machine's Chromium is: PAGE_BROWSER, or the first of the usual names."""
    given = os.environ.get("PAGE_BROWSER")
    return given or next(filter(None, map(shutil.which, NAMES)), None)


@asynccontextmanager
async def running_browser(path: str) -> AsyncIterator[Browser]:
    """Yields a Chromium without a window."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        await browser.close()


@dataclass
class Visit:
    """One person at the page, with a browser profile of their own.

    Attributes:
        page: the page.
        origin: the gateway's; requests to anybody else are problems.
        expected: expressions of the problems that a test wants to see.
        problems: errors of the page, of its console and of its policy, and strangers asked.
        requests: URLs of all requests, in order.
    """

    page: Page
    origin: str
    expected: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Notes what goes wrong from now on."""
        self.page.on("console", self._note_console)
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on("request", self._note_request)
        self.page.on("popup", lambda popup: self.problems.append(f"popup: {popup.url}"))

    async def open(self) -> None:
        """Opens the page, or says what keeps it from starting."""
        await self.page.goto(f"{self.origin}/")
        try:
            await self.question.wait_for(timeout=WAIT_MS / 2)
        except PlaywrightTimeoutError:
            raise AssertionError(f"the page does not start: {self.problems}") from None

    def _note_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"{message.type}: {message.text}")

    def _note_request(self, request: Request) -> None:
        self.requests.append(request.url)
        if not request.url.startswith((self.origin + "/", *OWN_SCHEMES)):
            self.problems.append(f"request: {request.url[:200]}")

    async def watched(self) -> dict[str, Any]:
        """Returns what the watcher has seen in the page."""
        seen: dict[str, Any] = await self.page.evaluate("window.watched")
        return seen

    async def words(self, key: str, **values: str | int) -> str:
        """Returns words of the page, in the language that it has now."""
        script = "([key, values]) => import('/page/language.js').then(({t}) => t(key, values))"
        words: str = await self.page.evaluate(script, [key, values])
        assert words != key, f"the page has no words for {key}"
        return words

    async def button(self, key: str, **values: str | int) -> Locator:
        """Returns the button of that name, given by the key of its words."""
        return self.page.get_by_role("button", name=await self.words(key, **values), exact=True)

    @property
    def question(self) -> Locator:
        return self.page.locator("#question")

    @property
    def answer(self) -> Locator:
        """The last answer."""
        return self.page.locator("article.answer").last

    async def ask(self, text: str, *pictures: Path, wait: bool = True) -> None:
        """Asks a question about pictures; waits for the answer's end unless told otherwise."""
        if pictures:
            await self.attach(*pictures)
            cards = self.page.locator(".pictures-list .pictures-card")
            await expect(cards).to_have_count(len(pictures))
        count = await self.page.locator("article.answer").count()
        await self.question.fill(text)
        await self.question.press("Enter")
        await self.page.wait_for_function(ANSWER_COUNT, arg=count + 1)
        if wait:
            await self.answered()

    async def answered(self, timeout_ms: float = 60_000) -> None:
        """Waits until the last answer has ended."""
        await self.page.wait_for_function(NOTHING_BUSY, timeout=timeout_ms)

    async def attach(self, *files: Path) -> None:
        """Adds files by the file chooser."""
        async with self.page.expect_file_chooser() as chooser:
            await self.add("file")
        await (await chooser.value).set_files([*files])

    async def add(self, source: str) -> None:
        """Opens the menu of the pictures, and takes the entry: file, video, camera or url."""
        await self.page.locator(".pictures-add").click()
        name = await self.words(f"sources.{source}")
        await self.page.get_by_role("menuitem", name=name).click()

    async def reopen(self) -> None:
        """Opens the newest conversation that the browser keeps."""
        await (await self.button("menu.history")).click()
        await self.page.locator(".history-open").first.click()
        await expect(self.page.locator(".turn").first).to_be_visible()

    async def unexpected(self) -> list[str]:
        """Returns the problems that no test wants."""
        problems = [*self.problems, *(await self.watched())["violations"]]
        wanted = re.compile("|".join(self.expected) or r"(?!)")
        return [problem for problem in problems if not wanted.search(problem)]


@asynccontextmanager
async def visiting(browser: Browser, origin: str, **options: Any) -> AsyncIterator[Visit]:
    """Yields a visit of the page; fails at its end if anything went wrong.

    Args:
        browser: whose profile it is.
        origin: the gateway's, e.g. http://127.0.0.1:8000.
        options: of the profile: locale, viewport, color_scheme, reduced_motion, has_touch.
    """
    context: BrowserContext = await browser.new_context(
        **{"viewport": DESKTOP, "locale": "en-GB", "permissions": ["camera"]} | options
    )
    try:
        context.set_default_timeout(WAIT_MS)
        await context.add_init_script(WATCHER)
        visit = Visit(await context.new_page(), origin)
        visit.watch()
        await visit.open()
        yield visit
        await asyncio.sleep(0.05)  # what was under way is told
        if problems := await visit.unexpected():
            raise AssertionError(f"the page had problems: {problems}")
    finally:
        await context.close()
