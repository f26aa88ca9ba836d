"""How a call finds its replica: by a key, on a ring of those that serve, else on to another one.

gRPC has the ring, and keeps out of it who is not SERVING, breaks off or hangs. A key leads to the
same replica from every gateway. So an image is found where it was encoded, and a conversation where
its KV cache is, and nobody keeps a table of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from protos.errors import ModelMismatchError, OverloadedError, ServiceError, UnavailableError
from protos.process.backlog import refuse_wait
from protos.process.tracing import current_span

Answer = TypeVar("Answer")

ROUTING_KEY = "x-internvl-routing-key"
# gRPC takes a ring's hash from a header only where this variable says so, until its first channel.
HASH_KEY_VARIABLE = "GRPC_EXPERIMENTAL_RING_HASH_SET_REQUEST_HASH_KEY"
# gRPC's largest: the shares of 64 replicas then differ by a third, with 1024 by two.
RING_SIZE = 4096
# Replicas that one call is offered to, as long as none of them has begun to answer it; and those
# that are asked for their queues where its own replica's is too long.
OFFER_COUNT = 3
CHOICE_COUNT = 2
# How many times the shortest of these queues its own may be long.
HOME_FACTOR = 2.0
# Replicas that are asked what they run, for one that fits. Where a quarter of them does, one search
# in a hundred fails.
SEARCH_COUNT = 16
# How long a key whose replica refused it goes elsewhere at once, and how many such keys are known.
BUSY_SECONDS = 5.0
BUSY_KEY_COUNT = 4096
# To one that has just broken off, and may be the only one: it is back within moments.
PAUSE_SECONDS = 0.1


def service_config(health_name: str) -> str:
    """Returns how gRPC shares out the calls of a channel among all addresses of its name.

    Args:
        health_name: the service whose health is watched.
    """
    ring = {
        "minRingSize": RING_SIZE,
        "maxRingSize": RING_SIZE,
        "requestHashHeader": ROUTING_KEY,
    }
    return json.dumps(
        {
            "loadBalancingConfig": [{"ring_hash_experimental": ring}],
            "healthCheckConfig": {"serviceName": health_name},
        }
    )


def allow_hash_keys() -> None:
    """Lets gRPC take hashes from headers; to be called before the process's first channel."""
    os.environ[HASH_KEY_VARIABLE] = "true"


@dataclass(frozen=True)
class QueueLimits:
    """How long a replica's queue may be, in seconds.

    Attributes:
        spill_seconds: before others are asked for theirs.
        max_seconds: before the call is refused.
    """

    spill_seconds: float
    max_seconds: float


@dataclass(frozen=True)
class Offer:
    """A call as it is offered to one replica.

    Attributes:
        key: leads to the replica.
        max_queue_seconds: it refuses if its queue is longer.
    """

    key: str
    max_queue_seconds: float

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What the call carries of it."""
        return ((ROUTING_KEY, self.key),)


def salted(key: str, number: int) -> str:
    """Returns one of a key's further keys, which mostly leads to another replica; 0 is itself."""
    return f"{key}#{number}" if number else key


def note_retry(failure: ServiceError, attempt: int) -> None:
    """Tells the trace that a call is made once more, as which attempt, and why."""
    current_span().event("retry", attempt=attempt, reason=failure.reason)


class Router:
    """Offers calls of one service to its replicas, until one begins to answer."""

    def __init__(self, limits: QueueLimits, count_attempt: Callable[[str], None]) -> None:
        """Remembers nothing yet.

        Args:
            limits: how long a replica's queue may be.
            count_attempt: is told the reason of an error for which another replica is asked.
        """
        self._limits = limits
        self._count_attempt = count_attempt
        self._busy: OrderedDict[str, float] = OrderedDict()

    async def offer(
        self,
        key: str,
        call: Callable[[Offer], Awaitable[Answer]],
        ask_backlog: Callable[[str], Awaitable[float]],
    ) -> Answer:
        """Returns the answer of the first replica that begins one.

        First comes the key's replica. If its queue is too long, two others at random are asked for
        theirs: a key that everybody asks for may need all replicas. The shortest gets the call,
        unless the key's own is not much longer: where all are busy, a call that is at home costs
        the least. After a call went elsewhere, the key's own replica is left alone for a while, so
        that it is there for its other keys.

        Args:
            key: leads to the replica.
            call: makes the call; it returns once something has come back.
            ask_backlog: asks a key's replica for the seconds until a newcomer's turn.

        Raises:
            OverloadedError: the shortest queue is too long, or all that were asked are full.
            UnavailableError: the last that was asked broke off, or none serves.
            ModelMismatchError: the key's replica runs another checkpoint.
            ServiceError: what else a call raises.
        """
        offer = Offer(key, min(self._limits.spill_seconds, self._limits.max_seconds))
        if self._is_busy(key):
            offer = await self._elsewhere(key, ask_backlog)
        failure: ServiceError | None = None
        home_seconds: float | None = None
        for attempt in range(1, OFFER_COUNT + 1):
            if failure:
                self._count_attempt(failure.reason)
                note_retry(failure, attempt)
                if isinstance(failure, UnavailableError):
                    await asyncio.sleep(PAUSE_SECONDS)
                offer = await self._elsewhere(key, ask_backlog, home_seconds, failure)
                home_seconds = None
            try:
                return await call(offer)
            except OverloadedError as error:
                failure = error
                if offer.max_queue_seconds < self._limits.max_seconds:
                    home_seconds = offer.max_queue_seconds + (error.retry_after or 0.0)
            except UnavailableError as error:
                failure = error
            except ModelMismatchError as error:
                if offer.key == key:
                    raise
                failure = error
        assert failure
        raise failure

    async def _elsewhere(
        self,
        key: str,
        ask_backlog: Callable[[str], Awaitable[float]],
        home_seconds: float | None = None,
        failure: ServiceError | None = None,
    ) -> Offer:
        """Returns the offer to one of some others at random, or to its own once more.

        Args:
            key: leads to its own replica.
            ask_backlog: as of `offer`.
            home_seconds: its own replica's queue, where that has told it.
            failure: what the call has failed of before.

        Raises:
            ServiceError: they are too long; what the call has failed of before says it best.
        """
        others = [salted(key, 1 + secrets.randbelow(2**32)) for _ in range(CHOICE_COUNT)]
        answers = await asyncio.gather(*map(ask_backlog, others), return_exceptions=True)
        backlogs = {} if home_seconds is None else {key: home_seconds}
        for other, answer in zip(others, answers, strict=True):
            if not isinstance(answer, BaseException):
                backlogs[other] = answer
            elif not isinstance(answer, ServiceError):
                raise answer
        shortest = min(backlogs, key=backlogs.__getitem__, default=others[0])
        if failure and backlogs.get(shortest, 0.0) > self._limits.max_seconds:
            raise failure
        refuse_wait(backlogs.get(shortest, 0.0), self._limits.max_seconds)
        if home_seconds is not None:
            if home_seconds <= HOME_FACTOR * backlogs[shortest]:
                shortest = key
            else:
                self._note_busy(key)
        return Offer(shortest, self._limits.max_seconds)

    def _is_busy(self, key: str) -> bool:
        return time.monotonic() < self._busy.get(key, 0.0)

    def _note_busy(self, key: str) -> None:
        self._busy[key] = time.monotonic() + BUSY_SECONDS
        self._busy.move_to_end(key)
        if len(self._busy) > BUSY_KEY_COUNT:
            self._busy.popitem(last=False)
