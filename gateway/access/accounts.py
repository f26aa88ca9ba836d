"""What each caller uses of its limits, and has in flight: counted in this process alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from gateway.access.callers import Caller, Policy
from gateway.access.meters import Meter, Taking
from gateway.caller_limits import (
    CallerConcurrencyError,
    CallerImagesError,
    CallerLimitError,
    CallerRequestsError,
    CallerTokensError,
    Kind,
    Rate,
)

ERRORS: dict[Kind, type[CallerLimitError]] = {
    "requests": CallerRequestsError,
    "tokens": CallerTokensError,
    "images": CallerImagesError,
}
# A request that is in flight ends when it ends.
CONCURRENCY_RETRY_SECONDS = 1.0


class Account:
    """One caller's use.

    Attributes:
        in_flight_count: requests that have come and not ended.
    """

    def __init__(self, name: str, clock: Callable[[], int]) -> None:
        self.in_flight_count = 0
        self._name = name
        self._clock = clock
        self._gateway_count = 1
        self._max_in_flight_count: int | None = None
        self._meters: dict[Kind, Meter] = {}

    def hold_to(self, policy: Policy, gateway_count: int) -> None:
        """Takes over limits, of which this is one gateway's share, rounded up."""
        self._gateway_count = gateway_count
        self._max_in_flight_count = _share(policy.max_concurrent_request_count, gateway_count)
        self._limit("requests", _share(policy.requests_per_minute, gateway_count))
        self._limit("tokens", _share(policy.tokens_per_minute, gateway_count))
        self._limit("images", _share(policy.images_per_minute, gateway_count))

    def _limit(self, kind: Kind, limit: int | None) -> None:
        meter = self._meters.get(kind)
        if limit is None:
            self._meters.pop(kind, None)
        elif meter is None:
            self._meters[kind] = Meter(limit, self._clock)
        else:
            meter.change_limit(limit)

    @property
    def counts_tokens(self) -> bool:
        """Whether a limit asks for it."""
        return "tokens" in self._meters

    def rates(self) -> Sequence[Rate]:
        """Returns how far it is from each limit that it has."""
        return [
            Rate(kind, meter.limit, meter.room, meter.nanoseconds_to_empty / 1e9)
            for kind, meter in self._meters.items()
        ]

    @contextmanager
    def visit(self) -> Iterator[None]:
        """Counts a request, as one in flight until the block is left.

        Raises:
            CallerLimitError: there are too many, at a time or in a minute; it counts as none.
        """
        limit = self._max_in_flight_count
        if limit is not None and self.in_flight_count >= limit:
            raise CallerConcurrencyError(
                f"the key {self._name!r} has {self.in_flight_count} requests in flight;"
                f" its limit is {limit}{self._shared()}",
                retry_after=CONCURRENCY_RETRY_SECONDS,
            )
        self.use(requests=1)
        self.in_flight_count += 1
        try:
            yield
        finally:
            self.in_flight_count -= 1

    def use(self, *, requests: int = 0, images: int = 0, tokens: int = 0) -> Taking | None:
        """Counts what a request uses.

        Returns:
            The tokens, to be settled; None where nothing limits them.

        Raises:
            CallerLimitError: one of the limits does not allow it; nothing is counted.
        """
        wanted: list[tuple[Kind, int]] = [
            ("requests", requests),
            ("images", images),
            ("tokens", tokens),
        ]
        taken = [(kind, count) for kind, count in wanted if count and kind in self._meters]
        for kind, count in taken:
            self._check(kind, count)
        takings = {kind: self._meters[kind].take(count) for kind, count in taken}
        return takings.get("tokens")

    def _check(self, kind: Kind, count: int) -> None:
        meter = self._meters[kind]
        limit = f"the key {self._name!r} may use {meter.limit} {kind} a minute{self._shared()}"
        if count > meter.limit:
            raise ERRORS[kind](f"the request is too large: it takes {count} {kind}, and {limit}")
        if wait := meter.nanoseconds_until(count):
            raise ERRORS[kind](
                f"{limit}, and {meter.room} are left; this request takes {count}, which it can in"
                f" {wait / 1e9:.3g} s",
                retry_after=wait / 1e9,
            )

    def _shared(self) -> str:
        return f" at each of {self._gateway_count} gateways" if self._gateway_count > 1 else ""


def _share(limit: int | None, gateway_count: int) -> int | None:
    return None if limit is None else -(-limit // gateway_count)


class Accounts:
    """The accounts of all callers, by their names: a key that is read anew goes on with its own.

    Attributes:
        gateway_count: how many gateways each caller's limits are shared out to.
    """

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """`clock` tells nanoseconds, and never goes back."""
        self.gateway_count = 1
        self._clock = clock
        self._accounts: dict[str, Account] = {}

    def of(self, caller: Caller) -> Account:
        """Returns a caller's account, held to the limits that its key has now."""
        account = self._accounts.get(caller.name)
        if account is None:
            account = self._accounts[caller.name] = Account(caller.name, self._clock)
        account.hold_to(caller.policy, self.gateway_count)
        return account
