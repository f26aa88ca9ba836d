"""What SIGHUP has a process read anew."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

from protos.process.reload import on_reload, reload_on_sighup

SOON_SECONDS = 5.0


class Rereads:
    """Counts how often something was read anew."""

    def __init__(self) -> None:
        self.count = 0
        self._happened = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self._happened.set()

    async def next(self) -> None:
        """Waits until it is."""
        self._happened.clear()
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.wait_for(self._happened.wait(), SOON_SECONDS)


async def test_each_signal_rereads_what_is_registered_then() -> None:
    keys, certificates = Rereads(), Rereads()
    reload_on_sighup()
    with on_reload(keys):
        with on_reload(certificates):
            await certificates.next()
        await keys.next()
    assert (keys.count, certificates.count) == (2, 1)


async def test_what_one_raises_keeps_none_from_being_read() -> None:
    keys = Rereads()
    raised: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: raised.append(context["exception"]))
    reload_on_sighup()

    def fail() -> None:
        raise ValueError("the file is gone")

    with on_reload(fail), on_reload(keys):
        await keys.next()
    assert [str(error) for error in raised] == ["the file is gone"]
