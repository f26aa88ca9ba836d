"""An HTTP proxy on this machine: it passes requests on to one server, whatever name they have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field


@dataclass
class Proxy:
    """A proxy in front of the server at a port of this machine.

    Attributes:
        heads: the requests that came, as bytes.
        status: what CONNECT is answered with.
    """

    server_port: int
    heads: list[bytes] = field(default_factory=list)
    status: int = 200
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            onward, back = await asyncio.open_connection("127.0.0.1", self.server_port)
            with closing(back):
                if head.startswith(b"CONNECT"):
                    writer.write(b"HTTP/1.1 %d Reason\r\n\r\n" % self.status)
                    if self.status != 200:
                        return
                else:
                    method, url, rest = head.split(b" ", 2)
                    path = b"/" + url.split(b"/", 3)[3]
                    back.write(b" ".join([method, path, rest]))
                await asyncio.wait(
                    [
                        asyncio.create_task(_copy(reader, back)),
                        asyncio.create_task(_copy(onward, writer)),
                    ],
                    return_when=asyncio.FIRST_COMPLETED,
                )


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def image_proxy(server_port: int) -> AsyncIterator[Proxy]:
    """Yields a proxy that leads to a server of this machine."""
    proxy = Proxy(server_port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
