"""Only a key opens, and it is compared with all, whatever it is."""

from __future__ import annotations

import hmac
from collections import Counter

import pytest

from gateway.access.callers import Caller, Policy
from gateway.access.keyring import Key, KeyRing, digest_of
from gateway.access.new_keys import new_key
from tests.wrong_keys import RULES, wrong_keys


def ring_of(*keys: str) -> KeyRing:
    """Returns a ring on which each key's caller is named by its place."""
    return KeyRing(
        [
            Key(Caller(name=str(index), policy=Policy()), (digest_of(key.encode()),))
            for index, key in enumerate(keys)
        ]
    )


def found(ring: KeyRing, key: str) -> str | None:
    caller = ring.find(key.encode("utf-8", "surrogateescape"))
    return caller.name if caller else None


def test_each_key_is_its_callers_own() -> None:
    keys = [new_key() for _ in range(50)]
    ring = ring_of(*keys)
    assert [found(ring, key) for key in keys] == [str(index) for index in range(50)]


def test_none_of_ten_thousand_wrong_keys_opens() -> None:
    keys = [new_key() for _ in range(20)]
    ring = ring_of(*keys)
    tried: Counter[str] = Counter()
    for rule, wrong in wrong_keys(keys, 10_000):
        assert found(ring, wrong) is None, rule
        tried[rule] += 1
    assert tried.total() == 10_000
    assert min(tried[rule] for rule in RULES) > 800


@pytest.mark.parametrize("presented", ["first", "middle", "last", "wrong", "none", "long"])
def test_whatever_is_presented_is_compared_with_all(
    presented: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [new_key() for _ in range(9)]
    ring = ring_of(*keys)
    secrets = {"first": keys[0], "middle": keys[4], "last": keys[8], "wrong": new_key(), "none": ""}
    compared: list[tuple[bytes, bytes]] = []

    def compare(known: bytes, digest: bytes) -> bool:
        compared.append((known, digest))
        return known == digest

    monkeypatch.setattr(hmac, "compare_digest", compare)
    secret = secrets.get(presented, "x" * 100_000)
    ring.find(secret.encode())
    digest = digest_of(secret.encode())
    assert compared == [(digest_of(key.encode()), digest) for key in keys]


def test_two_keys_open_while_one_replaces_the_other() -> None:
    old, new = new_key(), new_key()
    digests = (digest_of(old.encode()), digest_of(new.encode()))
    ring = KeyRing([Key(Caller(name="alice", policy=Policy()), digests)])
    assert found(ring, old) == found(ring, new) == "alice"


def test_another_set_of_keys_takes_the_place_of_the_first() -> None:
    old, new = new_key(), new_key()
    ring = ring_of(old)
    ring.replace(ring_of(new).keys)
    assert (found(ring, old), found(ring, new)) == (None, "0")


def test_an_empty_ring_opens_to_nobody() -> None:
    assert found(ring_of(), "") is None
    assert found(ring_of(), new_key()) is None
