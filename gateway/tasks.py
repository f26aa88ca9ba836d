"""Ownership of tasks: who starts one ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def owning(*tasks: asyncio.Task[Any]) -> AsyncIterator[None]:
    """Cancels the tasks that still run when the block is left, and waits for their end."""
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
