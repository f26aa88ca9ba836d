"""How a call finds its replica: by a key, on a ring of those that serve, else on to another one.

gRPC has the ring, and keeps those out of it that are not SERVING, break off, or fail every call. A
key leads to the same replica from every gateway. So an image is found where it was encoded, and a
conversation where its KV cache is, and nobody keeps a table of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from protos.errors import ModelMismatchError, OverloadedError, ServiceError, UnavailableError

Answer = TypeVar("Answer")

ROUTING_KEY = "x-internvl-routing-key"
# gRPC takes a ring's hash from a header only where this variable says so, until its first channel.
HASH_KEY_VARIABLE = "GRPC_EXPERIMENTAL_RING_HASH_SET_REQUEST_HASH_KEY"
# gRPC's largest: the shares of 64 replicas then differ by a third, with 1024 by two.
RING_SIZE = 4096
# A replica is left out for a while when it fails about every call though its health says SERVING.
# To gRPC, what clients do wrong is a failed call too, and so is a full queue: with a smaller share,
# or fewer calls, bad pictures or a busy hour would put good replicas out.
OUTLIERS = {
    "interval": "10s",
    "baseEjectionTime": "30s",
    "maxEjectionPercent": 34,
    "failurePercentageEjection": {
        "threshold": 95,
        "enforcementPercentage": 100,
        "minimumHosts": 2,
        "requestVolume": 50,
    },
}
# Replicas that one call is offered to, as long as none of them has begun to answer it.
OFFER_COUNT = 3
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
    policy = {**OUTLIERS, "childPolicy": [{"ring_hash_experimental": ring}]}
    return json.dumps(
        {
            "loadBalancingConfig": [{"outlier_detection_experimental": policy}],
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
        spill_seconds: before the call is offered to another one.
        max_seconds: before it is refused, where all that were asked have a longer one.
    """

    spill_seconds: float
    max_seconds: float

    @property
    def first_seconds(self) -> float:
        """The bound of a call's first offers."""
        return min(self.spill_seconds, self.max_seconds)


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

    async def offer(self, key: str, call: Callable[[Offer], Awaitable[Answer]]) -> Answer:
        """Returns the answer of the first replica that begins one.

        First comes the key's replica, unless it refused this key a moment ago: so a picture that
        everybody asks of does not keep it from all others. Then come any, as a hot key may need
        all of them. Where every queue is too long the shortest has it.

        Args:
            key: leads to the replica.
            call: makes the call; it returns once something has come back.

        Raises:
            OverloadedError: all that were asked have too long a queue; with the shortest time.
            UnavailableError: the last that was asked broke off, or none serves.
            ModelMismatchError: the key's replica runs another checkpoint.
            ServiceError: what else a call raises.
        """
        refusals: list[tuple[OverloadedError, str]] = []
        failure: ServiceError | None = None
        for number, offered in enumerate(self._keys(key)):
            if failure:
                self._count_attempt(failure.reason)
            if isinstance(failure, UnavailableError):
                await asyncio.sleep(PAUSE_SECONDS)
            try:
                return await call(Offer(offered, self._limits.first_seconds))
            except OverloadedError as error:
                failure = error
                refusals.append((error, offered))
                if offered == key:
                    self._note_busy(key)
            except UnavailableError as error:
                failure = error
            except ModelMismatchError as error:
                if not number:
                    raise
                failure = error
        if refusals:
            failure, shortest = min(refusals, key=lambda refusal: refusal[0].retry_after or 0.0)
            if self._limits.first_seconds < self._limits.max_seconds:
                self._count_attempt(failure.reason)
                return await call(Offer(shortest, self._limits.max_seconds))
        assert failure
        raise failure

    def _keys(self, key: str) -> Iterator[str]:
        if time.monotonic() >= self._busy.get(key, 0.0):
            yield key
        else:
            yield _any_other(key)
        for _ in range(OFFER_COUNT - 1):
            yield _any_other(key)

    def _note_busy(self, key: str) -> None:
        self._busy[key] = time.monotonic() + BUSY_SECONDS
        if len(self._busy) > BUSY_KEY_COUNT:
            self._busy.popitem(last=False)


def _any_other(key: str) -> str:
    return salted(key, 1 + secrets.randbelow(2**32))
