"""What `--check` of both services has in common: a checkpoint's facts, or why it is not served."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from protos.checkpoint.section import CheckpointError
from protos.process import logs
from protos.process.facts import Facts, aligned
from protos.process.memory import gib

# Of the element types in which models are usually run.
SHORT_ITEMSIZE, LONG_ITEMSIZE = 2, 4


def check(inspect: Callable[[], Facts]) -> NoReturn:
    """Prints what was found; where it is not served, exit status 1 and the sentence on stderr."""
    logs.configure("warning", "console")
    try:
        sys.stdout.write(aligned(inspect()))
    except (CheckpointError, OSError) as error:
        sys.exit(str(error))
    sys.exit(0)


def weight_fact(byte_count: Callable[[int], int]) -> tuple[str, str]:
    """Returns what the weights take, given what they take in elements of so many bytes."""
    short, long = map(gib, map(byte_count, (SHORT_ITEMSIZE, LONG_ITEMSIZE)))
    return "weights", f"{short} in 16 bits (bfloat16, float16), {long} in float32"
