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
from itertools import chain, cycle
from math import inf

from tests.benchmarks.replicas.simulation.clock import Clock

# The backlog and the index of a replica that has refused.
Refusal = tuple[float, int]
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
        home_factor: when all have refused, the key's own replica gets the request without a bound
            if its backlog is at most so many times the least of those asked, else that one.
        remembered_seconds: so long a gateway passes over a key's own replica after the request went
            to another one.
        point_count: points of the whole ring, gRPC's `minRingSize`.
    """

    name: str
    is_hashed: bool = True
    spill_seconds: float = inf
    salts: tuple[int, ...] = ()
    drawn_count: int = 0
    drawn_from: int = SALT_COUNT
    home_factor: float = 1.0
    remembered_seconds: float = 0.0
    point_count: int = 4096


ROUND_ROBIN = Policy("round robin", is_hashed=False)
RING = Policy("ring hash")
BOUNDED = Policy(
    "ring hash, load bound",
    spill_seconds=0.25,
    drawn_count=2,
    home_factor=2.0,
    remembered_seconds=5.0,
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
        self._passed_over: list[dict[str, float]] = [{} for _ in range(gateway_count)]

    def asked(self, key: str, gateway: int, chance: random.Random) -> Iterator[int]:
        """Yields the replicas to be asked with the bound, one after the other."""
        policy = self.policy
        if not policy.is_hashed:
            yield next(self._turns)
            return
        drawn_count = policy.drawn_count
        if self._passed_over[gateway].get(key, 0.0) <= self._clock.now:
            yield self._ring.owner(key)
        else:
            drawn_count += 1
        drawn = (chance.randint(1, policy.drawn_from) for _ in range(drawn_count))
        for salt in chain(policy.salts, drawn):
            yield self._ring.owner(f"{key}#{salt}")

    def last(self, key: str, refusals: Sequence[Refusal]) -> int:
        """Returns who is asked without a bound when all have refused."""
        least, shortest = min(refusals)
        home, backlog = self._ring.owner(key), {index: one for one, index in refusals}
        is_home = backlog.get(home, inf) <= self.policy.home_factor * least
        return home if is_home else shortest

    def note(self, key: str, gateway: int, refusals: Sequence[Refusal], found: int) -> None:
        """Remembers that a request went elsewhere, as the key's own replica was too busy."""
        home = self._ring.owner(key)
        if found != home and refusals and refusals[0][1] == home:
            until = self._clock.now + self.policy.remembered_seconds
            self._passed_over[gateway][key] = until
