"""Keys: what it takes to find out who calls, by what is presented."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

from multidict import CIMultiDict, CIMultiDictProxy

from gateway.access.authentication import InvalidKeyError, authenticated
from gateway.access.callers import Caller, Policy
from gateway.access.keyring import Key, KeyRing, digest_of
from gateway.access.new_keys import new_key
from tests.benchmarks.report import Report
from tests.wrong_keys import RULES

KEY_COUNTS = (1, 100, 1000)
ROUND_COUNT = 60
CALL_COUNT = 50
COMPARED = f"""\
CPU time of one look at the headers of a request, `authenticated` of `gateway/access`: the key is
read from the header, hashed, and its digest compared with those of all keys. All presentations
take turns, in an order drawn anew each round, {ROUND_COUNT} rounds of {CALL_COUNT} calls each.
Medians of the rounds. A wrong key is made of one of the ring's by a rule of `tests/wrong_keys.py`;
whatever is refused takes a microsecond more than a key that opens, for the error that says so."""

Look = Callable[[], object]


def run(progress: Callable[[str], None]) -> Report:
    """Measures in this process."""
    report = Report(
        title="Finding out whose key it is, microseconds of CPU time",
        compared=COMPARED,
        columns=("presented", *(f"{count:,} keys" for count in KEY_COUNTS)),
    )
    seconds: dict[str, dict[str, list[float]]] = {}
    for count in KEY_COUNTS:
        progress(f"{count:,} keys")
        for name, taken in _measure(count).items():
            seconds.setdefault(name, {})[f"{count} keys"] = taken
    for name, of_counts in seconds.items():
        medians = [statistics.median(each) * 1e6 for each in of_counts.values()]
        report.add(name, [f"{median:.2f}" for median in medians], of_counts)
    return report


def _measure(key_count: int) -> Mapping[str, list[float]]:
    chance = random.Random(key_count)
    keys = [new_key() for _ in range(key_count)]
    ring = KeyRing(
        [
            Key(Caller(name=str(index), policy=Policy()), (digest_of(key.encode()),))
            for index, key in enumerate(keys)
        ]
    )
    looks = {name: partial(_look, ring, headers) for name, headers in _presented(keys, chance)}
    taken: dict[str, list[float]] = {name: [] for name in looks}
    for _ in range(ROUND_COUNT):
        for name in chance.sample(list(looks), len(looks)):
            taken[name].append(_cpu_seconds(looks[name]))
    return taken


def _presented(keys: list[str], chance: random.Random) -> list[tuple[str, dict[str, str]]]:
    rights = {"the first key": keys[0], "the last key": keys[-1]}
    wrongs = {name: rule(chance, chance.choice(keys)) for name, rule in RULES.items()}
    bearers = {
        name: {"Authorization": f"Bearer {key}"}
        for name, key in {**rights, **wrongs, "8,000 characters": "x" * 8000}.items()
    }
    both = {"Authorization": f"Bearer {keys[0]}", "x-api-key": new_key()}
    return [*bearers.items(), ("none", {}), ("two keys", both)]


def _look(ring: KeyRing, headers: dict[str, str]) -> None:
    proxy = CIMultiDictProxy(CIMultiDict(headers))
    for _ in range(CALL_COUNT):
        with suppress(InvalidKeyError):
            authenticated(ring, proxy)


def _cpu_seconds(look: Look) -> float:
    """Returns the CPU seconds of one call of many."""
    started = time.thread_time()
    look()
    return (time.thread_time() - started) / CALL_COUNT
