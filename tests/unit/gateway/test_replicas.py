"""How many replicas a service has: by its address as gRPC writes it, and by a real name server."""

from __future__ import annotations

import asyncio

import pytest

from gateway.services import replicas
from gateway.services.replicas import Target, open_replica_count
from tests.replicas.names import TTL_SECONDS, Names

NAME = "vision.example"


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("vision:50051", Target(name="vision")),
        ("vision", Target(name="vision")),
        ("dns:vision:50051", Target(name="vision")),
        ("dns:///vision.ns.svc:50051", Target(name="vision.ns.svc")),
        ("DNS:///vision", Target(name="vision")),
        ("dns://10.0.0.2/vision:1", Target(name="vision", server=("10.0.0.2", 53))),
        ("dns://10.0.0.2:5353/vision:1", Target(name="vision", server=("10.0.0.2", 5353))),
        ("dns://[fd00::2]:5353/vision:1", Target(name="vision", server=("fd00::2", 5353))),
        ("dns://names.example/vision:1", Target()),
        ("127.0.0.1:50051", Target(known_count=1)),
        ("dns:///127.0.0.1:50051", Target(known_count=1)),
        ("[::1]:50051", Target(known_count=1)),
        ("::1", Target(known_count=1)),
        ("ipv4:10.0.0.2:50051,10.0.0.3:50051", Target(known_count=2)),
        ("ipv6:%5Bfd00::2%5D:50051,[fd00::3]:50051,[fd00::4]:50051", Target(known_count=3)),
        ("unix:vision.sock", Target(known_count=1)),
        ("unix:///run/vision.sock", Target(known_count=1)),
        ("unix-abstract:vision", Target(known_count=1)),
        ("xds:///vision", Target()),
    ],
)
def test_an_address_is_read_as_grpc_reads_it(address: str, target: Target) -> None:
    assert Target.parse(address) == target


async def test_a_name_is_looked_up_again_after_a_while_and_not_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replicas, "LOOKUP_SECONDS", TTL_SECONDS + 0.2)
    names = Names()
    names.publish(NAME, "127.0.0.2")
    names.publish(NAME, "127.0.0.3")
    async with names.running(), open_replica_count(names.target(NAME, 50051)) as count:
        assert [*await asyncio.gather(count.now(), count.now())] == [2, 2]
        asked = names.question_counts[NAME]
        names.withdraw(NAME, "127.0.0.2")
        assert await count.now() == 2
        assert names.question_counts[NAME] == asked
        await asyncio.sleep(TTL_SECONDS + 0.3)
        assert await count.now() == 1


async def test_whoever_gives_up_waiting_ends_no_question() -> None:
    names = Names()
    names.publish(NAME, "127.0.0.2")
    async with names.running(), open_replica_count(names.target(NAME, 50051)) as count:
        for _ in range(5):
            waiting = asyncio.create_task(count.now())
            await asyncio.sleep(0)
            waiting.cancel()
        assert await count.now() == 1
        asked = names.question_counts[NAME]
        assert await count.now() == 1
        assert names.question_counts[NAME] == asked <= 2  # one for each family of addresses


async def test_a_name_that_is_unknown_has_no_count() -> None:
    names = Names()
    async with names.running(), open_replica_count(names.target(NAME, 50051)) as count:
        assert await count.now() is None


async def test_a_name_server_that_says_nothing_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replicas, "ANSWER_SECONDS", 0.1)
    names = Names()
    async with names.running():
        monkeypatch.setattr(Names, "datagram_received", lambda *_: None)
        async with open_replica_count(names.target(NAME, 1)) as count:
            assert await count.now() is None
