"""Callers that a gateway under test knows by their names, and their accounts by any clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

import pytest
from aiohttp import web

from gateway import middlewares
from gateway.access.accounts import Accounts
from gateway.access.callers import Caller, Policy
from gateway.app_keys import CALLER, RECORD
from gateway.middlewares import Handler
from tests.fakes import SOON_SECONDS


class KnownCallers:
    """Makes gateways that start from now on take each Authorization header for a caller's name.

    Attributes:
        policies: of the callers; may be changed meanwhile.
        accounts: what they use.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        policies: Mapping[str, Policy],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.policies = dict(policies)
        self.accounts = Accounts(clock)
        monkeypatch.setattr("gateway.app.Accounts", lambda: self.accounts)
        monkeypatch.setattr(middlewares, "authenticate", self._middleware())

    def caller(self, name: str) -> Caller:
        """Returns the caller of a name, with its policy of now."""
        return Caller(name=name, policy=self.policies[name])

    def _middleware(self) -> Callable[..., Awaitable[web.StreamResponse]]:
        @web.middleware
        async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
            name = request.headers.get("Authorization") or request.headers["x-api-key"]
            request[CALLER] = self.caller(name.removeprefix("Bearer "))
            request[RECORD].caller = request[CALLER].name
            return await handler(request)

        return authenticate


async def until(condition: Callable[[], bool], seconds: float = SOON_SECONDS) -> None:
    """Waits for what must come to be soon; else fails."""

    async def watch() -> None:
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)

    await asyncio.wait_for(watch(), seconds)
