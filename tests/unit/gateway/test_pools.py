"""Threads of the gateway: one kind of work waits for no other, and the process for none."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import gateway
from gateway.pools import open_pools
from protos.process.settings import KIB


async def test_a_call_gives_its_result_or_its_error() -> None:
    with open_pools() as pools:
        assert await pools.json.run(divmod, 7, 3) == (2, 1)
        with pytest.raises(ZeroDivisionError):
            await pools.json.run(divmod, 1, 0)


async def test_a_thread_computes_what_is_large() -> None:
    with open_pools() as pools:
        own = threading.current_thread()
        assert await pools.json.run_if_large(4 * KIB, threading.current_thread) is own
        other = await pools.json.run_if_large(4 * KIB + 1, threading.current_thread)
        assert other.name.startswith("json")


async def test_a_pool_that_hangs_holds_up_no_other() -> None:
    released = threading.Event()
    with open_pools() as pools:
        hanging = [asyncio.create_task(pools.files.run(released.wait)) for _ in range(9)]
        try:
            assert await asyncio.wait_for(pools.hashes.run(len, "abc"), 5) == 3
            assert not any(call.done() for call in hanging)
            hanging[-1].cancel()
        finally:
            released.set()
        results = await asyncio.gather(*hanging, return_exceptions=True)
    assert results[:-1] == [True] * 8
    assert isinstance(results[-1], asyncio.CancelledError)


async def test_the_threads_end_with_the_block() -> None:
    before = threading.active_count()
    with open_pools() as pools:
        await pools.json.run(len, "")
        threads = [
            thread for thread in threading.enumerate() if thread.name.startswith(("json", "files"))
        ]
    for thread in threads:
        thread.join(5)
    assert len(threads) == 6
    assert threading.active_count() <= before + 2  # the digests' may still be about to end


def test_a_thread_that_hangs_holds_up_no_exit() -> None:
    code = """if True:
        import asyncio, threading
        from gateway.pools import open_pools

        async def main():
            with open_pools() as pools:
                try:
                    await asyncio.wait_for(pools.files.run(threading.Event().wait), 0.1)
                except asyncio.TimeoutError:
                    print("left")

        asyncio.run(main())
    """
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "left\n"


def test_nothing_uses_the_pool_that_all_would_share() -> None:
    sources = Path(gateway.__file__).parent.rglob("*.py")
    for path in sources:
        text = path.read_text()
        assert "to_thread" not in text, path
        assert "run_in_executor(None" not in text, path
