"""Tracebacks for the log: where an exception came from, and never what it says.

The text of an exception may hold what a client sent: a prompt, a key, an image's URL.
"""

from __future__ import annotations

import errno
import sys
import threading
import traceback
from typing import TextIO

import structlog
from structlog.typing import ExcInfo

logger = structlog.get_logger()

CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"


def wordless_traceback(exc_info: ExcInfo) -> str:
    """Returns the frames and types of an exception and of those behind it, without their texts."""
    return "".join(_blocks(exc_info[1], set())).rstrip("\n")


def write_wordless_traceback(output: TextIO, exc_info: ExcInfo) -> None:
    """Writes it where structlog's console renderer wants it."""
    output.write("\n" + wordless_traceback(exc_info))


def log_unhandled() -> None:
    """Has exceptions that end a thread, or that Python cannot raise, logged as all others are."""
    threading.excepthook = lambda hook: logger.error("bug", exc_info=hook.exc_value)
    sys.unraisablehook = lambda hook: logger.error("bug", exc_info=hook.exc_value)


def _blocks(error: BaseException, seen: set[int]) -> list[str]:
    seen.add(id(error))
    cause, context = error.__cause__, error.__context__
    before: list[str] = []
    if cause is not None and id(cause) not in seen:
        before = [*_blocks(cause, seen), CAUSE]
    elif context is not None and not error.__suppress_context__ and id(context) not in seen:
        before = [*_blocks(context, seen), CONTEXT]
    frames = traceback.format_tb(error.__traceback__)
    return [*before, "Traceback (most recent call last):\n", *frames, f"{_named(error)}\n"]


def _named(error: BaseException) -> str:
    kind = type(error)
    prefix = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    number = error.errno if isinstance(error, OSError) else None
    return f"{prefix}{kind.__qualname__} {errno.errorcode.get(number or 0, '')}".rstrip()
