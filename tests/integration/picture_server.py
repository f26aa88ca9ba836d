"""A server of pictures on this machine, and what asks a gateway about them."""

from __future__ import annotations

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.fakes import Gateway

PICTURE = b"picture" * 1000
PARAM = "messages[0].content[0].image_url.url"
LOCAL = ("127.0.0.1",)
CERTIFICATES = Path(__file__).parent.parent / "data" / "certificates"


@dataclass
class PictureServer:
    """An HTTP server of pictures, and the requests that reached it."""

    requests: list[web.Request] = field(default_factory=list)
    both: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0

    scheme: str = "http"
    location: str = ""

    def url(self, path: str = "/picture", host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if request.path.startswith("/status/"):
            return web.Response(status=int(request.path.rpartition("/")[2]))
        match request.path:
            case "/picture":
                response = web.Response(body=PICTURE)
                response.set_cookie("a", "b")
                return response
            case "/empty":
                return web.Response()
            case "/gzip":
                headers = {"Content-Encoding": "gzip"}
                return web.Response(body=gzip.compress(PICTURE), headers=headers)
            case "/r/s/redirect" if self.location:
                location, self.location = self.location, ""
                return web.Response(status=302, headers={"Location": location})
            case "/redirect":
                return web.Response(status=302, headers={"Location": request.query["to"]})
            case "/page":
                return web.Response(text="\ufeff\n<!doctype html>", content_type="text/html")
            case "/typed-as-page":
                return web.Response(body=PICTURE, content_type="text/html")
            case "/cut":
                return await self._cut(request)
            case "/loop":
                return web.Response(status=307, headers={"Location": "/loop"})
            case "/nowhere":
                return web.Response(status=302)
            case "/endless":
                return await self._endless(request)
            case "/together":
                if len(self.requests) >= 2:
                    self.both.set()
                await self.both.wait()
                return web.Response(body=PICTURE)
            case "/slow":
                await asyncio.Event().wait()
        return web.Response(status=404)

    async def _cut(self, request: web.Request) -> web.StreamResponse:
        """Ends too early."""
        response = web.StreamResponse(headers={"Content-Length": str(len(PICTURE))})
        await response.prepare(request)
        await response.write(PICTURE[:100])
        if request.query.get("waits"):
            await asyncio.Event().wait()
        assert request.transport
        request.transport.close()
        return response

    async def _endless(self, request: web.Request) -> web.StreamResponse:
        """Sends for ever, without saying how much."""
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(100_000))


@asynccontextmanager
async def picture_server(certificate: str = "") -> AsyncIterator[PictureServer]:
    """Yields a server; with the name of a certificate one of https."""
    pictures = PictureServer(scheme="https" if certificate else "http")
    context = None
    if certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(CERTIFICATES / f"{certificate}.pem", CERTIFICATES / "key.pem")
    app = web.Application()
    app.router.add_get("/{path:.*}", pictures.answer)
    server = TestServer(app, host="127.0.0.1", scheme=pictures.scheme)
    await server.start_server(shutdown_timeout=0.1, ssl=context)
    pictures.port = server.port or 0
    try:
        yield pictures
    finally:
        await server.close()


def user(*urls: str) -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": parts}]


async def ask(gateway: Gateway, *urls: str) -> tuple[int, Any]:
    """Returns the status, and the error's code and path or None."""
    status, body = await gateway.chat(messages=user(*urls))
    error = body.get("error")
    return status, error and (error["code"], error["param"])


async def reason(gateway: Gateway, url: str) -> str:
    """Returns why a picture could not be fetched."""
    status, body = await gateway.chat(messages=user(url))
    error = body["error"]
    assert (status, error["code"], error["param"]) == (400, "image_fetch_failed", PARAM)
    return str(error["message"])
