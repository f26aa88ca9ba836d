"""A Chromium for all tests of the page, and what the page is served by.

The gateways of `scripted` answer with given texts, over real gRPC; those that need true answers ask
the shipped model (`served`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.page.browser import NAMES, Visit, browser_path, running_browser, visiting

Visiting = Callable[..., AbstractAsyncContextManager[Visit]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """The machine's Chromium, started once."""
    path = browser_path()
    if path is None:
        pytest.skip(f"no Chromium here: none of {', '.join(NAMES)} in PATH, PAGE_BROWSER not set")
    async with running_browser(path) as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser) -> Visiting:
    """Opens the page: `async with visit(origin, locale="zh-CN") as person`."""
    return partial(visiting, browser)
