"""Parsing beside the event loop, on threads that do nothing else."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from gateway.openai.requests import ChatCompletionRequest, parse_chat_request

# Parsing holds the interpreter's lock for most of its time: more threads would parse no faster.
THREAD_COUNT = 2


class RequestParser:
    """Parses request bodies; as many wait as there are requests in flight."""

    def __init__(self, max_text_byte_count: int) -> None:
        """Outside of data URLs, a body may have so many bytes."""
        self._max_text_byte_count = max_text_byte_count
        self._threads = ThreadPoolExecutor(THREAD_COUNT, thread_name_prefix="parse")

    async def parse(self, body: bytes) -> ChatCompletionRequest:
        """Returns what `parse_chat_request` does."""
        loop = asyncio.get_running_loop()
        limit = self._max_text_byte_count
        return await loop.run_in_executor(self._threads, parse_chat_request, body, limit)

    def close(self) -> None:
        """Ends the threads; what waits is dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)
