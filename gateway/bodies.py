"""Bodies of requests as they arrive, and those that are refused before a byte is read."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

from aiohttp import HttpVersion11, web

from gateway.images.data_urls import Body, BodyReader, ContentLimits
from gateway.images.json_paths import JSONPath
from gateway.memory import Share
from protos.process.settings import is_loopback

# What a proxy on this machine adds to the requests of others.
FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")


@dataclass(frozen=True)
class BodyLimits:
    """What a body may cost.

    Attributes:
        max_byte_count: its largest size.
        seconds: longest time for it to arrive.
        content: what it may hold.
    """

    max_byte_count: int
    seconds: float
    content: ContentLimits


async def expect_nothing(_: web.Request) -> None:
    """Leaves "100 Continue" to `receive`, which says it only to a body that it would read."""


async def receive(
    request: web.Request,
    limits: BodyLimits,
    share: Share,
    image_places: Collection[JSONPath],
) -> Body:
    """Returns a request's body; for `image_places` see `BodyReader`.

    Raises:
        HTTPException: 408, 413, 415 or 417.
        InvalidArgumentError: it has too many images, or is no JSON.
        ContextLengthError: it has too much text.
        OverloadedError: all requests together hold too much.
    """
    _check_encoding(request)
    _check_size(request.content_length or 0, limits.max_byte_count)
    await _invite(request)
    try:
        return await asyncio.wait_for(_read(request, limits, share, image_places), limits.seconds)
    except asyncio.TimeoutError as error:
        raise web.HTTPRequestTimeout(
            text=f"the body did not arrive within {limits.seconds:g} seconds"
        ) from error


async def _read(
    request: web.Request,
    limits: BodyLimits,
    share: Share,
    image_places: Collection[JSONPath],
) -> Body:
    from_loopback = _is_from_loopback(request)
    reader = BodyReader(limits.content, share, image_places, from_loopback=from_loopback)
    byte_count = 0
    async for data in request.content.iter_any():
        byte_count += len(data)
        _check_size(byte_count, limits.max_byte_count)
        reader.feed(data)
    return reader.finish()


def _is_from_loopback(request: web.Request) -> bool:
    """Says whether the client itself is on this machine, not a proxy that brings its request."""
    forwarded = any(name in request.headers for name in FORWARDED)
    return is_loopback(request.remote or "") and not forwarded


def _check_encoding(request: web.Request) -> None:
    # A compressed body could grow a thousandfold when it is unpacked.
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise web.HTTPUnsupportedMediaType(text="the body is compressed; send it as it is")


def _check_size(byte_count: int, limit: int) -> None:
    if byte_count > limit:
        raise web.HTTPRequestEntityTooLarge(
            limit, byte_count, text=f"the body has {byte_count} bytes or more; the limit is {limit}"
        )


async def _invite(request: web.Request) -> None:
    """Says "100 Continue" to a client that waits for it before it sends the body."""
    expected = request.headers.get("Expect", "").lower()
    if expected == "100-continue" and request.version == HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer has not begun
    elif expected not in ("", "100-continue"):
        raise web.HTTPExpectationFailed(text="the request expects what this server does not know")
