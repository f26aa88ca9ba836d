"""A name server whose answers change while it runs, as those of a headless Service do."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.local.ports import LOOPBACK
from tests.integration.name_server import answer, name_in

TTL_SECONDS = 1


class Names(asyncio.DatagramProtocol):
    """Answers a name with its IPv4 addresses of the moment.

    Attributes:
        port: where it listens on the loopback address.
        addresses: of each name.
        question_counts: how often each name was asked for.
    """

    def __init__(self) -> None:
        self.port = 0
        self.addresses: dict[str, list[str]] = defaultdict(list)
        self.question_counts: Counter[str] = Counter()
        self._transport: asyncio.DatagramTransport | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Names]:
        """Answers for the time of the block."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(LOOPBACK, 0))
        self.port = transport.get_extra_info("sockname")[1]
        try:
            yield self
        finally:
            transport.close()

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, sender: tuple[str, int]) -> None:
        name = name_in(data)
        self.question_counts[name] += 1
        if self._transport:
            self._transport.sendto(answer(data, self.addresses[name], TTL_SECONDS), sender)

    def target(self, name: str, port: int) -> str:
        """Returns what gRPC is told, to look a name up here."""
        return f"dns://{LOOPBACK}:{self.port}/{name}:{port}"

    def publish(self, name: str, address: str) -> None:
        """Adds an address to a name, as that of a pod that is ready."""
        if address not in self.addresses[name]:
            self.addresses[name].append(address)

    def withdraw(self, name: str, address: str) -> None:
        """Takes an address from a name, as that of a pod that terminates."""
        if address in self.addresses[name]:
            self.addresses[name].remove(address)
