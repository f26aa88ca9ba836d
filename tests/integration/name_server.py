"""A DNS server of ours that knows one address, or says nothing."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import pytest
from aiohttp.resolver import AsyncResolver

from gateway.images import addresses

HEADER_BYTE_COUNT = 12
TYPE_A = 1


class NameServer(asyncio.DatagramProtocol):
    """Answers every name with one IPv4 address, with "" that there is no such name; else is silent.

    Attributes:
        questions: the names that were asked for.
    """

    def __init__(self, address: str | None) -> None:
        self.questions: list[str] = []
        self._address = address
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, sender: tuple[str, int]) -> None:
        self.questions.append(name_in(data))
        if self._address is not None and self._transport:
            self._transport.sendto(answer(data, [self._address] if self._address else []), sender)


def name_in(query: bytes) -> str:
    """Returns the name that a query asks for."""
    question = query[HEADER_BYTE_COUNT:]
    labels = []
    while length := question[0]:
        labels.append(question[1 : 1 + length].decode())
        question = question[1 + length :]
    return ".".join(labels)


def answer(query: bytes, addresses: Sequence[str], ttl_seconds: int = 60) -> bytes:
    """Returns what a name server says of a name's IPv4 addresses; of none, that it is unknown."""
    question = query[HEADER_BYTE_COUNT : query.index(b"\0", HEADER_BYTE_COUNT) + 5]
    if not addresses:
        return query[:2] + struct.pack("!5H", 0x8183, 1, 0, 0, 0) + question  # NXDOMAIN
    (kind,) = struct.unpack("!H", question[-4:-2])
    told = addresses if kind == TYPE_A else []
    header = query[:2] + struct.pack("!5H", 0x8180, 1, len(told), 0, 0)
    record = struct.pack("!3HIH", 0xC00C, TYPE_A, 1, ttl_seconds, 4)
    return header + question + b"".join(record + socket.inet_aton(one) for one in told)


@asynccontextmanager
async def name_server(
    monkeypatch: pytest.MonkeyPatch, address: str | None = None
) -> AsyncIterator[NameServer]:
    """Runs one, which gateways that start meanwhile ask instead of the machine's."""
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(
        lambda: NameServer(address), local_addr=("127.0.0.1", 0)
    )
    port = transport.get_extra_info("sockname")[1]
    resolver = partial(AsyncResolver, nameservers=["127.0.0.1"], udp_port=port)
    monkeypatch.setattr(addresses, "AsyncResolver", resolver)
    try:
        yield server
    finally:
        transport.close()
