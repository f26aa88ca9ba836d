"""Callers' accounts: limits that change, shares, and refusals that count nothing."""

from __future__ import annotations

import pytest

from gateway.access.accounts import Accounts
from gateway.access.callers import Caller, Policy
from gateway.caller_limits import (
    CallerConcurrencyError,
    CallerImagesError,
    CallerRequestsError,
    CallerTokensError,
)


def alice(**limits: int) -> Caller:
    return Caller(name="alice", policy=Policy(**limits))


def standing_still() -> int:
    return 0


def test_a_refusal_names_key_limit_and_value_and_counts_nothing() -> None:
    account = Accounts(standing_still).of(alice(tokens_per_minute=100, images_per_minute=2))
    account.use(images=1, tokens=90)
    with pytest.raises(CallerTokensError) as refused:
        account.use(images=1, tokens=40)
    assert refused.value.message == (
        "the key 'alice' may use 100 tokens a minute, and 10 are left;"
        " this request takes 40, which it can in 18 s"
    )
    assert refused.value.retry_after == 18
    account.use(images=1, tokens=10)
    with pytest.raises(CallerImagesError):
        account.use(images=1)


def test_what_never_fits_is_told_without_a_time() -> None:
    account = Accounts(standing_still).of(alice(tokens_per_minute=100, images_per_minute=0))
    with pytest.raises(CallerTokensError, match="too large: it takes 101 tokens") as refused:
        account.use(tokens=101)
    assert refused.value.retry_after is None
    with pytest.raises(CallerImagesError, match="too large: it takes 1 images"):
        account.use(images=1)
    account.use(images=0)


def test_requests_at_a_time_are_counted_out_on_every_way() -> None:
    account = Accounts(standing_still).of(alice(max_concurrent_request_count=1))
    with account.visit(), pytest.raises(CallerConcurrencyError, match="its limit is 1"):
        account.visit().__enter__()
    with pytest.raises(KeyError), account.visit():
        raise KeyError
    assert account.in_flight_count == 0


def test_a_request_that_is_refused_for_its_number_counts_as_none() -> None:
    now = [0]
    accounts = Accounts(lambda: now[0])
    account = accounts.of(alice(requests_per_minute=1, max_concurrent_request_count=5))
    with account.visit():
        pass
    for _ in range(10):  # a client that hammers does not lock itself out
        now[0] += 5 * 10**9
        with pytest.raises(CallerRequestsError), account.visit():
            pass
    now[0] += 10 * 10**9
    with account.visit():
        assert account.in_flight_count == 1


def test_a_changed_limit_holds_at_once_and_goes_on_from_what_was_used() -> None:
    accounts = Accounts(standing_still)
    accounts.of(alice(tokens_per_minute=100)).use(tokens=90)
    (rate,) = accounts.of(alice(tokens_per_minute=1000)).rates()
    assert (rate.limit, rate.remaining) == (1000, 910)
    assert accounts.of(alice()).rates() == []


@pytest.mark.parametrize(("gateway_count", "shares"), [(1, [10, 100, 1]), (4, [3, 25, 1])])
def test_each_gateway_gives_its_share_rounded_up(gateway_count: int, shares: list[int]) -> None:
    accounts = Accounts(standing_still)
    accounts.gateway_count = gateway_count
    caller = alice(
        requests_per_minute=10,
        tokens_per_minute=100,
        images_per_minute=1,
        max_concurrent_request_count=5,
    )
    account = accounts.of(caller)
    assert [rate.limit for rate in account.rates()] == shares
    with pytest.raises(CallerTokensError) as refused:
        account.use(tokens=101)
    assert ("at each of 4 gateways" in refused.value.message) is (gateway_count == 4)


def test_callers_have_accounts_of_their_own() -> None:
    accounts = Accounts(standing_still)
    accounts.of(alice(requests_per_minute=1)).use(requests=1)
    bob = accounts.of(Caller(name="bob", policy=Policy(requests_per_minute=1)))
    bob.use(requests=1)
    with pytest.raises(CallerRequestsError):
        bob.use(requests=1)
