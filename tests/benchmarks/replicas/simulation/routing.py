"""How a gateway chooses a replica: in turn, by a ring of hashes, with a bound of load or without.

Gateways share nothing: each choice needs the key alone, and what the replicas asked have answered.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import cycle
from math import inf

from gateway.services.routing import BUSY_SECONDS, CHOICE_COUNT, HOME_FACTOR, RING_SIZE
from gateway.settings import Settings
from tests.benchmarks.replicas.simulation.clock import Clock

# What the salts of other keys are drawn from: enough for any replica to come up.
SALT_COUNT = 1 << 20


@dataclass(frozen=True)
class Policy:
    """A way to choose; the bound is that of `gateway/services/routing.py`.

    Attributes:
        name: for tables.
        is_hashed: by the key; else all replicas in turn.
        spill_seconds: a replica with a longer backlog refuses, and others are looked at.
        choice_count: so many, drawn at random. The least backlog gets the request,
        home_factor: unless that of the key's own replica is at most so many times as long.
        busy_seconds: so long a gateway passes over a key's own replica after a request went
            elsewhere.
        point_count: points of the whole ring.
    """

    name: str
    is_hashed: bool = True
    spill_seconds: float = inf
    choice_count: int = CHOICE_COUNT
    home_factor: float = HOME_FACTOR
    busy_seconds: float = BUSY_SECONDS
    point_count: int = RING_SIZE


ROUND_ROBIN = Policy("round robin", is_hashed=False)
RING = Policy("ring hash")
BOUNDED = Policy(
    "ring hash, load bound",
    spill_seconds=Settings.model_fields["spill_queue_seconds"].default,
)


class Ring:
    """Where a key belongs: the owner of the next point, of which each replica has equally many."""

    def __init__(self, replica_count: int, point_count: int) -> None:
        points = sorted(
            (digest(f"replica {replica} {number}"), replica)
            for replica in range(replica_count)
            for number in range(-(-point_count // replica_count))
        )
        self._places = [place for place, _ in points]
        self._owners = [replica for _, replica in points]

    def owner(self, key: str) -> int:
        """Returns the index of a key's replica."""
        return self._owners[bisect(self._places, digest(key)) % len(self._owners)]

    def shares(self, replica_count: int) -> Sequence[float]:
        """Returns what part of all keys each replica owns."""
        shares = [0.0] * replica_count
        for (place, before), owner in zip(
            zip(self._places, [self._places[-1] - 2**64, *self._places], strict=False),
            self._owners,
            strict=True,
        ):
            shares[owner] += (place - before) / 2**64
        return shares


@lru_cache(maxsize=1 << 18)
def digest(key: str) -> int:
    """Returns 64 bits of a key."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")


class Chooser:
    """The choices of the gateways among one service's replicas."""

    def __init__(
        self, policy: Policy, replica_count: int, gateway_count: int, clock: Clock
    ) -> None:
        self.policy = policy
        self._clock = clock
        self._ring = Ring(replica_count, policy.point_count)
        self._turns = cycle(range(replica_count))
        # By gateway: until when a key's own replica is passed over.
        self._busy: list[dict[str, float]] = [{} for _ in range(gateway_count)]

    def first(self, key: str, gateway: int) -> int | None:
        """Returns the replica that is asked first; None when the key's own is passed over."""
        if not self.policy.is_hashed:
            return next(self._turns)
        is_busy = self._busy[gateway].get(key, 0.0) > self._clock.now
        return None if is_busy else self._ring.owner(key)

    def others(self, key: str, chance: random.Random) -> list[int]:
        """Returns replicas to be looked at beside the first one; they may be the same."""
        salts = (chance.randint(1, SALT_COUNT) for _ in range(self.policy.choice_count))
        return [self._ring.owner(f"{key}#{salt}") for salt in salts]

    def decide(
        self, key: str, gateway: int, first: int | None, backlogs: Mapping[int, float]
    ) -> int:
        """Returns which of the replicas with these backlogs gets the request."""
        shortest = min(backlogs, key=backlogs.__getitem__)
        if first is None:
            return shortest
        if backlogs[first] <= self.policy.home_factor * backlogs[shortest]:
            return first
        self._busy[gateway][key] = self._clock.now + self.policy.busy_seconds
        return shortest
