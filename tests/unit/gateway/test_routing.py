"""Where a call goes when its replica refuses, breaks off, or runs another checkpoint."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from gateway.services import routing
from gateway.services.routing import (
    CHOICE_COUNT,
    OFFER_COUNT,
    Offer,
    QueueLimits,
    Router,
)
from protos.errors import (
    DataLossError,
    DeadlineError,
    EngineDeadError,
    InvalidArgumentError,
    ModelMismatchError,
    OverloadedError,
    ServiceError,
    UnavailableError,
)

SPILL_SECONDS, MAX_SECONDS = 0.25, 60.0


class Replicas:
    """Calls end as they are told to, one after the other; then well. So do questions for queues."""

    def __init__(
        self, *failures: ServiceError, queues: Sequence[float | ServiceError] = ()
    ) -> None:
        self.offers: list[Offer] = []
        self.asked: list[str] = []
        self.reasons: list[str] = []
        self.router = Router(QueueLimits(SPILL_SECONDS, MAX_SECONDS), self.reasons.append)
        self._failures = list(failures)
        self._queues = list(queues)

    def refuse(self, *failures: ServiceError) -> None:
        self._failures.extend(failures)

    async def offer(self, key: str = "key") -> str:
        return await self.router.offer(key, self.call, self.ask_backlog)

    async def call(self, offer: Offer) -> str:
        self.offers.append(offer)
        if self._failures:
            raise self._failures.pop(0)
        return offer.key

    async def ask_backlog(self, key: str) -> float:
        self.asked.append(key)
        queue = self._queues.pop(0) if self._queues else 0.0
        if isinstance(queue, ServiceError):
            raise queue
        return queue


def busy(seconds: float) -> ServiceError:
    return OverloadedError("a long queue", retry_after=seconds)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "PAUSE_SECONDS", 0.0)


async def test_the_key_goes_first_and_nobody_else_is_asked() -> None:
    replicas = Replicas()
    assert await replicas.offer() == "key"
    assert replicas.offers == [Offer("key", SPILL_SECONDS)]
    assert (replicas.asked, replicas.reasons) == ([], [])


@pytest.mark.parametrize(
    "failure", [busy(3.0), UnavailableError("gone"), EngineDeadError("dead")], ids=repr
)
async def test_another_replica_is_asked(failure: ServiceError) -> None:
    replicas = Replicas(failure)
    assert (await replicas.offer()).startswith("key#")
    assert replicas.offers[1].max_queue_seconds == MAX_SECONDS
    assert replicas.reasons == [failure.reason]


@pytest.mark.parametrize("error", [InvalidArgumentError, DataLossError, ServiceError])
async def test_what_is_wrong_with_the_request_is_wrong_everywhere(
    error: type[ServiceError],
) -> None:
    replicas = Replicas(error("no"))
    with pytest.raises(error):
        await replicas.offer()
    assert len(replicas.offers) == 1


@pytest.mark.parametrize(
    ("queues", "shortest"),
    [
        ((9.0, 1.5), 1),
        ((0.0, 9.0), 0),
        ((9.0, 1.7), None),
        ((9.0, 8.0), None),
        ((UnavailableError("gone"), 1.0), 1),
        ((DeadlineError("late"), UnavailableError("gone")), None),
    ],
)
async def test_the_shortest_queue_gets_the_call(
    queues: Sequence[float | ServiceError], shortest: int | None
) -> None:
    """Its own is 3.25 seconds long, the bound and what it said; twice another's will do."""
    replicas = Replicas(busy(3.0), queues=queues)
    found = await replicas.offer()
    assert found == ("key" if shortest is None else replicas.asked[shortest])
    assert len(set(replicas.asked)) == CHOICE_COUNT
    assert replicas.offers[-1] == Offer(found, MAX_SECONDS)


async def test_a_queue_that_is_too_long_is_told_and_not_tried() -> None:
    """In the words of the replica that has refused, if one has."""
    refusal = busy(99.0)
    replicas = Replicas(refusal, queues=(61.5, 70.0))
    with pytest.raises(OverloadedError) as caught:
        await replicas.offer()
    assert caught.value is refusal
    assert len(replicas.offers) == 1


async def test_of_a_key_that_is_left_alone_the_queues_are_told() -> None:
    replicas = Replicas(busy(9.0), queues=(1.0, 1.0, 61.5, 70.0))
    await replicas.offer()
    with pytest.raises(OverloadedError) as caught:
        await replicas.offer()
    assert caught.value.retry_after == 1.5
    assert len(replicas.offers) == 2


async def test_one_that_is_full_whatever_its_queue_is_passed_over() -> None:
    replicas = Replicas(busy(9.0), busy(1.0))
    assert (await replicas.offer()) == replicas.offers[2].key
    assert len({offer.key for offer in replicas.offers}) == 3


async def test_all_are_full() -> None:
    replicas = Replicas(*[busy(1.0)] * OFFER_COUNT)
    with pytest.raises(OverloadedError):
        await replicas.offer()
    assert len(replicas.offers) == OFFER_COUNT


async def test_a_bound_below_the_usual_one_counts_from_the_start() -> None:
    replicas = Replicas(busy(9.0), queues=(0.2, 0.05))
    replicas.router = Router(QueueLimits(SPILL_SECONDS, 0.1), replicas.reasons.append)
    assert await replicas.offer() == replicas.asked[1]
    assert replicas.offers == [Offer("key", 0.1), Offer(replicas.asked[1], 0.1)]


async def test_a_key_that_was_refused_leaves_its_replica_alone_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replicas = Replicas(busy(3.0))
    await replicas.offer()
    assert (await replicas.offer()).startswith("key#")
    assert await replicas.offer("another") == "another"
    monkeypatch.setattr(time, "monotonic", lambda: float("inf"))
    assert await replicas.offer() == "key"


async def test_where_all_are_busy_a_key_stays_at_home() -> None:
    replicas = Replicas(busy(3.0), queues=[3.0] * 4)
    for _ in range(2):
        assert await replicas.offer() == "key"
    assert [offer.key for offer in replicas.offers] == ["key"] * 3


async def test_few_keys_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "BUSY_KEY_COUNT", 1)
    replicas = Replicas(busy(3.0))
    await replicas.offer()
    replicas.refuse(busy(3.0))
    await replicas.offer("another")
    assert await replicas.offer() == "key"


async def test_the_key_that_was_refused_longest_ago_is_forgotten_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(routing, "BUSY_KEY_COUNT", 2)
    replicas = Replicas()
    for second, key in enumerate(("key", "another", "key", "third")):
        monkeypatch.setattr(time, "monotonic", lambda now=10.0 * second: now)
        replicas.refuse(busy(3.0))
        await replicas.offer(key)
    monkeypatch.setattr(time, "monotonic", lambda: 24.0)
    assert (await replicas.offer("key")).startswith("key#")


async def test_nobody_serves() -> None:
    replicas = Replicas(*[UnavailableError("gone")] * OFFER_COUNT)
    with pytest.raises(UnavailableError):
        await replicas.offer()
    assert len(replicas.offers) == OFFER_COUNT


async def test_another_checkpoint_is_told_of_the_keys_own_replica_alone() -> None:
    replicas = Replicas(ModelMismatchError("another"))
    with pytest.raises(ModelMismatchError):
        await replicas.offer()
    replicas = Replicas(busy(3.0), ModelMismatchError("another"))
    assert (await replicas.offer()).startswith("key#")


async def test_a_bug_in_a_question_is_no_queue() -> None:
    replicas = Replicas(busy(3.0))

    async def broken(key: str) -> float:
        raise KeyError(key)

    with pytest.raises(KeyError):
        await replicas.router.offer("key", replicas.call, broken)
