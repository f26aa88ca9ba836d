"""How a gateway chooses a replica: in turn, by a ring of hashes, with a bound of load or without.

Gateways share nothing: each choice needs the key alone, and what the replicas asked have answered.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import cycle
from math import inf
from typing import Literal

from tests.benchmarks.replicas.simulation.clock import Clock

# What salts that are drawn are drawn from: enough for any replica to come up.
SALT_COUNT = 1 << 20


@dataclass(frozen=True)
class Policy:
    """A way to choose.

    Attributes:
        name: for tables.
        is_hashed: by the key; else all replicas in turn.
        spill_seconds: a replica with a longer backlog refuses, and another one is asked.
        salts: of the keys that are asked then, one after the other, with the same bound.
        drawn_count: how many more are asked after these; their salts are drawn anew each time.
        drawn_from: out of so many.
        last: who is asked without a bound when all have refused: the key's own replica, or the one
            with the least backlog of those asked.
        remembered_seconds: so long a gateway does not ask a replica that has refused a key for the
            same key, if it was found by the key itself or one of `salts`.
        point_count: points of the whole ring, gRPC's `minRingSize`.
    """

    name: str
    is_hashed: bool = True
    spill_seconds: float = inf
    salts: tuple[int, ...] = ()
    drawn_count: int = 0
    drawn_from: int = SALT_COUNT
    last: Literal["home", "least"] = "least"
    remembered_seconds: float = 0.0
    point_count: int = 4096


ROUND_ROBIN = Policy("round robin", is_hashed=False)
RING = Policy("ring hash")
BOUNDED = Policy("ring hash, load bound", spill_seconds=0.25, drawn_count=2, remembered_seconds=5.0)


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
        # By gateway: until when a salted key is passed over.
        self._refused: list[dict[str, float]] = [{} for _ in range(gateway_count)]

    def asked(self, key: str, chance: random.Random) -> Iterator[int]:
        """Yields the replicas to be asked with the bound; the next one only once one has refused.

        Args:
            key: of the request.
            chance: draws the request's gateway, and salts.
        """
        if not self.policy.is_hashed:
            yield next(self._turns)
            return
        refused = chance.choice(self._refused)
        for salted in [key, *(f"{key}#{salt}" for salt in self.policy.salts)]:
            if refused.get(salted, 0.0) <= self._clock.now:
                yield self._ring.owner(salted)
                refused[salted] = self._clock.now + self.policy.remembered_seconds
        for _ in range(self.policy.drawn_count):
            yield self._ring.owner(f"{key}#{chance.randint(1, self.policy.drawn_from)}")

    def last(self, asked: Sequence[tuple[float, int]]) -> int:
        """Returns who is asked without a bound.

        Args:
            asked: the backlog and the index of each replica that has refused, in order.
        """
        return asked[0][1] if self.policy.last == "home" else min(asked)[1]
