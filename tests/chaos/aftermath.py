"""What is left of requests when all have ended: nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from tests.chaos.stack import ChaosStack, Footprint, Member

# Guides that nobody waits for any more are compiled to the end, one after the other.
SETTLE_SECONDS = 90.0
POLL_SECONDS = 0.1
# What a process may hold more than before: connections that have just been made again, a thread.
SPARE_COUNT = 4


class AftermathError(AssertionError):
    """Something is not as it was before."""


async def settle(stack: ChaosStack, before: Mapping[Member, Footprint]) -> dict[Member, Footprint]:
    """Waits until all is as it was before, and returns what the services hold then.

    Raises:
        AftermathError: something is left over after a minute and a half.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    while left := [*await _left_in_engines(stack), *_left_in_processes(stack, before)]:
        if time.monotonic() > deadline:
            raise AftermathError("; ".join(left))
        await asyncio.sleep(POLL_SECONDS)
    return stack.footprints()


async def _left_in_engines(stack: ChaosStack) -> list[str]:
    left = []
    for member, load in (await stack.loads()).items():
        sequence_count = load.running_sequence_count + load.waiting_sequence_count
        token_count = load.total_kv_token_count - load.free_kv_token_count
        if sequence_count or token_count:
            left.append(
                f"the engine of {member} has {sequence_count} sequences, and {token_count} tokens"
                " in its KV cache"
            )
    return left


def _left_in_processes(stack: ChaosStack, before: Mapping[Member, Footprint]) -> list[str]:
    after = stack.footprints()
    return [line for name in before for line in _growth(name, before[name], after[name])]


def _growth(name: Member, before: Footprint, after: Footprint) -> list[str]:
    """Says what a process holds that it did not hold before; memory is the soak's to judge."""
    left = []
    if after.thread_count > before.thread_count + SPARE_COUNT:
        left.append(f"{name}: {after.thread_count} threads; there were {before.thread_count}")
    if after.descriptor_count > before.descriptor_count + SPARE_COUNT:
        left.append(
            f"{name}: {after.descriptor_count} descriptors; there were {before.descriptor_count}"
        )
    if after.child_count > before.child_count or after.zombie_count:
        left.append(f"{name}: {after.child_count} children, {after.zombie_count} of them zombies")
    return left
