"""Which key a request's headers bring, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

import pytest
from multidict import CIMultiDict

from gateway.access.authentication import MAX_KEY_LENGTH, InvalidKeyError, authenticated
from gateway.access.callers import Caller, Policy
from gateway.access.keyring import Key, KeyRing, digest_of
from gateway.access.new_keys import new_key
from tests.wrong_keys import wrong_keys

KEY, OTHER = new_key(), new_key()
Headers = Sequence[tuple[str, str]]


class CountingRing(KeyRing):
    """Counts how often a key is looked for."""

    count = 0

    def find(self, secret: bytes) -> Caller | None:
        self.count += 1
        return super().find(secret)


def ring(policy: Policy | None = None) -> CountingRing:
    caller = Caller(name="alice", policy=policy or Policy())
    return CountingRing([Key(caller, (digest_of(KEY.encode()),))])


def fault_of(headers: Headers, policy: Policy | None = None) -> str:
    """Returns what is wrong; all of the ring is compared whatever it is, and no key is repeated."""
    tried = ring(policy)
    with pytest.raises(InvalidKeyError) as caught:
        authenticated(tried, CIMultiDict(headers))
    assert tried.count == 1
    assert KEY not in caught.value.message
    return caught.value.fault


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", f"Bearer {KEY}")],
        [("authorization", f"bearer {KEY}")],
        [("AUTHORIZATION", f"BEARER   {KEY}")],
        [("x-api-key", KEY)],
        [("X-Api-Key", KEY), ("Authorization", f"Bearer {KEY}")],
    ],
)
def test_a_key_comes_as_openais_clients_send_it_or_as_anthropics(headers: Headers) -> None:
    assert authenticated(ring(), CIMultiDict(headers)).name == "alice"


@pytest.mark.parametrize(
    ("headers", "fault"),
    [
        ([], "missing"),
        ([("api-key", KEY), ("Cookie", f"key={KEY}")], "missing"),
        ([("Authorization", "")], "malformed"),
        ([("Authorization", "Bearer")], "malformed"),
        ([("Authorization", "Bearer ")], "malformed"),
        ([("Authorization", KEY)], "malformed"),
        ([("Authorization", f"Basic {KEY}")], "malformed"),
        ([("Authorization", f"Bearer\t{KEY}")], "malformed"),
        ([("Authorization", f"Bearer:{KEY}")], "malformed"),
        ([("x-api-key", "")], "malformed"),
        ([("Authorization", f"Bearer {KEY}")] * 2, "malformed"),
        ([("Authorization", f"Bearer {KEY}"), ("Authorization", "Basic eA==")], "malformed"),
        ([("x-api-key", KEY)] * 2, "malformed"),
        ([("x-api-key", KEY), ("x-api-key", OTHER)], "malformed"),
        ([("x-api-key", KEY), ("Authorization", f"Bearer {OTHER}")], "malformed"),
        ([("x-api-key", OTHER), ("Authorization", f"Bearer {KEY}")], "malformed"),
        ([("x-api-key", KEY), ("Authorization", "Basic eA==")], "malformed"),
        ([("x-api-key", KEY), ("Authorization", "Bearer")], "malformed"),
        ([("x-api-key", OTHER)], "unknown"),
        ([("Authorization", f"Bearer {KEY}, Bearer {KEY}")], "unknown"),
        ([("Authorization", f"Bearer Bearer {KEY}")], "unknown"),
        ([("x-api-key", f"Bearer {KEY}")], "unknown"),
        ([("x-api-key", "x" * (MAX_KEY_LENGTH + 1))], "unknown"),
        ([("x-api-key", "x" * 8000)], "unknown"),
    ],
)
def test_all_else_is_refused(headers: Headers, fault: str) -> None:
    assert fault_of(headers) == fault


def test_a_key_expires_and_only_who_has_it_is_told() -> None:
    now = datetime.now(timezone.utc)
    over = Policy(expires=now - timedelta(seconds=1))
    assert fault_of([("x-api-key", KEY)], over) == "expired"
    assert fault_of([("x-api-key", OTHER)], over) == "unknown"
    still = Policy(expires=now + timedelta(hours=1))
    assert authenticated(ring(still), CIMultiDict({"x-api-key": KEY})).name == "alice"


def test_none_of_ten_thousand_wrong_keys_is_taken() -> None:
    for index, (rule, wrong) in enumerate(wrong_keys([KEY], 10_000, seed=1)):
        header = ("x-api-key", wrong) if index % 2 else ("Authorization", f"Bearer {wrong}")
        # Spaces before a key are of the scheme: they are no part of what is presented.
        if header[1].startswith("Bearer ") and wrong.lstrip(" ") == KEY:
            continue
        assert fault_of([header]) in ("unknown", "malformed"), rule
