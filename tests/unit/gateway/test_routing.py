"""Where a call goes when its replica refuses, breaks off, or runs another checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from gateway.services import routing
from gateway.services.routing import OFFER_COUNT, Offer, QueueLimits, Router
from protos.errors import (
    DataLossError,
    EngineDeadError,
    InvalidArgumentError,
    ModelMismatchError,
    OverloadedError,
    ServiceError,
    UnavailableError,
)

SPILL_SECONDS, MAX_SECONDS = 0.25, 60.0


class Replicas:
    """Calls end as they are told to, one after the other; then well."""

    def __init__(self, *failures: ServiceError) -> None:
        self.offers: list[Offer] = []
        self.reasons: list[str] = []
        self._failures = list(failures)

    def refuse(self, *failures: ServiceError) -> None:
        self._failures.extend(failures)

    async def call(self, offer: Offer) -> str:
        self.offers.append(offer)
        if self._failures:
            raise self._failures.pop(0)
        return offer.key

    def router(self, max_seconds: float = MAX_SECONDS) -> Router:
        return Router(QueueLimits(SPILL_SECONDS, max_seconds), self.reasons.append)


def busy(*seconds: float) -> Sequence[ServiceError]:
    return [OverloadedError("a long queue", retry_after=one) for one in seconds]


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "PAUSE_SECONDS", 0.0)


async def test_the_key_goes_first() -> None:
    replicas = Replicas()
    assert await replicas.router().offer("key", replicas.call) == "key"
    assert replicas.offers == [Offer("key", SPILL_SECONDS)]
    assert replicas.reasons == []


@pytest.mark.parametrize(
    "failure", [*busy(3.0), UnavailableError("gone"), EngineDeadError("dead")], ids=repr
)
async def test_another_replica_is_asked(failure: ServiceError) -> None:
    replicas = Replicas(failure)
    found = await replicas.router().offer("key", replicas.call)
    assert found.startswith("key#")
    assert replicas.reasons == [failure.reason]


@pytest.mark.parametrize("error", [InvalidArgumentError, DataLossError, ServiceError])
async def test_what_is_wrong_with_the_request_is_wrong_everywhere(
    error: type[ServiceError],
) -> None:
    replicas = Replicas(error("no"))
    with pytest.raises(error):
        await replicas.router().offer("key", replicas.call)
    assert len(replicas.offers) == 1


async def test_the_shortest_of_long_queues_has_the_call() -> None:
    replicas = Replicas(*busy(9.0, 2.0, 5.0))
    found = await replicas.router().offer("key", replicas.call)
    assert len(replicas.offers) == OFFER_COUNT + 1
    assert replicas.offers[-1] == Offer(found, MAX_SECONDS)
    assert found == replicas.offers[1].key


async def test_a_queue_that_is_too_long_everywhere_is_told_by_the_shortest() -> None:
    replicas = Replicas(*busy(9.0, 2.0, 5.0), *busy(1.5))
    with pytest.raises(OverloadedError) as caught:
        await replicas.router().offer("key", replicas.call)
    assert caught.value.retry_after == 1.5


async def test_no_bound_is_asked_for_twice() -> None:
    replicas = Replicas(*busy(9.0, 2.0, 5.0))
    with pytest.raises(OverloadedError) as caught:
        await replicas.router(max_seconds=0.1).offer("key", replicas.call)
    assert caught.value.retry_after == 2.0
    assert {offer.max_queue_seconds for offer in replicas.offers} == {0.1}


async def test_a_key_that_was_refused_leaves_its_replica_alone_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replicas = Replicas(*busy(3.0))
    router = replicas.router()
    await router.offer("key", replicas.call)
    assert (await router.offer("key", replicas.call)).startswith("key#")
    assert await router.offer("another", replicas.call) == "another"
    monkeypatch.setattr(routing.time, "monotonic", lambda: float("inf"))
    assert await router.offer("key", replicas.call) == "key"


async def test_few_keys_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "BUSY_KEY_COUNT", 1)
    replicas = Replicas(*busy(3.0))
    router = replicas.router()
    await router.offer("key", replicas.call)
    replicas.refuse(*busy(3.0))
    await router.offer("another", replicas.call)
    assert await router.offer("key", replicas.call) == "key"


async def test_nobody_serves() -> None:
    replicas = Replicas(*[UnavailableError("gone")] * OFFER_COUNT)
    with pytest.raises(UnavailableError):
        await replicas.router().offer("key", replicas.call)
    assert len(replicas.offers) == OFFER_COUNT


async def test_a_busy_replica_is_better_than_one_that_is_gone() -> None:
    replicas = Replicas(*busy(9.0), UnavailableError("gone"), UnavailableError("gone"))
    assert await replicas.router().offer("key", replicas.call) == "key"


async def test_another_checkpoint_is_told_of_the_keys_own_replica_alone() -> None:
    replicas = Replicas(ModelMismatchError("another"))
    with pytest.raises(ModelMismatchError):
        await replicas.router().offer("key", replicas.call)
    replicas = Replicas(*busy(3.0), ModelMismatchError("another"))
    assert (await replicas.router().offer("key", replicas.call)).startswith("key#")
