"""What Python's garbage collector looks through."""

from __future__ import annotations

import gc


def freeze_started() -> None:
    """Takes what a start has made, which stays, out of the collector's sight.

    To look through PyTorch's hundreds of thousands of objects takes it 130 ms, in which no thread
    goes on: once in a while all answers would pause.
    """
    gc.collect()
    gc.freeze()
