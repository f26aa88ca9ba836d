"""Each attack that we know, by name: meanwhile honest clients are answered, rightly and soon."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass

import aiohttp
import pytest
import pytest_asyncio

from protos.process.settings import GIB
from tests.chaos.aftermath import settle
from tests.chaos.attacks import ATTACKS, LONG_ATTACKS, Attack, Target
from tests.chaos.bystanders import Bystanders
from tests.chaos.clients import Clients, PictureServer
from tests.chaos.ledger import Ledger
from tests.chaos.stack import REQUEST_SECONDS, ChaosStack, running_stack

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

# Without the limits that these attacks are about, bystanders wait for 5 to 60 seconds.
SPARE_SECONDS = 4.0
SLOWDOWN = 6.0
SPARE_LIVE_SECONDS = 1.0
ATTACK_SECONDS = 3 * REQUEST_SECONDS
GROWTH_BYTE_COUNT = 2 * GIB
DESCRIPTOR_COUNT = 512


@dataclass(frozen=True)
class Scene:
    """The services, and where attackers and bystanders meet them."""

    stack: ChaosStack
    pictures: PictureServer
    http: aiohttp.ClientSession

    @property
    def target(self) -> Target:
        stack = self.stack
        return Target(
            stack.first("gateway").port,
            stack.first("vision").address,
            stack.first("llm").address,
            self.http,
        )


@contextmanager
def few_descriptors() -> Iterator[None]:
    """Starts processes with as few descriptors as many systems allow them at first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, DESCRIPTOR_COUNT), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    folder = tmp_path_factory.mktemp("attacks")
    root = folder / "pictures"
    root.mkdir()
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None)
    async with AsyncExitStack() as exits:
        with few_descriptors():
            options = ["--file-root", str(root), "--max-held-byte-count", str(GIB // 4)]
            running = running_stack(folder, 1, gateway_options=options)
            stack = await exits.enter_async_context(running)
        pictures = await exits.enter_async_context(PictureServer().running())
        http = aiohttp.ClientSession(stack.urls[0], connector=connector, timeout=timeout)
        yield Scene(stack, pictures, await exits.enter_async_context(http))


@pytest.mark.parametrize(
    "attack",
    [*ATTACKS, *(pytest.param(attack, marks=pytest.mark.slow) for attack in LONG_ATTACKS)],
    ids=lambda attack: attack.__name__,
)
async def test_bystanders_are_answered(scene: Scene, attack: Attack) -> None:
    ledger = Ledger(seed=0)
    attacking = attack(scene.target)
    async with Clients(scene.stack.urls, ledger, scene.pictures).ready() as clients:
        bystanders = Bystanders(scene.stack, clients, scene.http)
        alone = await bystanders.watch()
        before = scene.stack.footprints()
        attacker = asyncio.create_task(attacking)
        waits = await asyncio.wait_for(bystanders.watch(attacker), ATTACK_SECONDS)
        proof = await attacker

    ledger.check()
    assert proof
    longest = SPARE_SECONDS + SLOWDOWN * max(alone.answer_seconds)
    assert max(waits.answer_seconds) < longest, proof
    longest = SPARE_LIVE_SECONDS + SLOWDOWN * max(alone.live_seconds)
    assert max(waits.live_seconds) < longest, proof
    assert waits.byte_count - alone.byte_count < GROWTH_BYTE_COUNT, proof
    await settle(scene.stack, before)
