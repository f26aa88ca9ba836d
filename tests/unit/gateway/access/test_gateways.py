"""How many gateways share the limits: by a number, and by a name that a real name server knows."""

from __future__ import annotations

import pytest

from gateway.access import gateways
from gateway.access.accounts import Accounts
from gateway.access.gateways import shared_out
from gateway.services import replicas
from tests.known_callers import until
from tests.replicas.names import TTL_SECONDS, Names

NAME = "gateways.example"
pytestmark = pytest.mark.timeout(30)


async def test_a_number_is_taken_as_it_is() -> None:
    accounts = Accounts()
    async with shared_out(accounts, "3"):
        assert accounts.gateway_count == 3


@pytest.mark.slow
async def test_a_names_addresses_are_counted_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (replicas, gateways):
        monkeypatch.setattr(module, "LOOKUP_SECONDS", TTL_SECONDS + 0.2)
    names = Names()
    names.publish(NAME, "127.0.0.2")
    names.publish(NAME, "127.0.0.3")
    accounts = Accounts()
    async with names.running(), shared_out(accounts, names.target(NAME, 8000)):
        assert accounts.gateway_count == 2
        names.publish(NAME, "127.0.0.4")
        await until(lambda: accounts.gateway_count == 3)
        for address in ("127.0.0.2", "127.0.0.3", "127.0.0.4"):
            names.withdraw(NAME, address)
        asked = names.question_counts[NAME]
        await until(lambda: names.question_counts[NAME] > asked + 2)
        assert accounts.gateway_count == 3


async def test_a_name_that_nobody_knows_leaves_the_limits_whole() -> None:
    names = Names()
    accounts = Accounts()
    async with names.running(), shared_out(accounts, names.target(NAME, 8000)):
        assert accounts.gateway_count == 1
