"""Images from http(s):// URLs: from checked addresses, or through the operator's proxy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import aiohttp
import yarl
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

from gateway.images.addresses import AddressPolicy, CheckedResolver, read_address
from gateway.images.budget import ImageBudget, check_byte_count
from gateway.images.download_errors import Progress, Stage, bad_status, failure, lateness
from gateway.images.http_urls import join, read_http_url
from gateway.memory import HeldFile, Share
from protos.errors import ImageFetchError, InvalidArgumentError

MAX_REDIRECT_COUNT = 3
REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
READ_BYTE_COUNT = 64 * 1024
# So that the images of a request ask for each host once.
NAME_CACHE_SECONDS = 10
# Of all requests together, to one host; no request opens so many.
MAX_HOST_CONNECTION_COUNT = 64
PROGRESS: ContextVar[Progress] = ContextVar("PROGRESS")  # of the task's download
HTML_TYPES = frozenset({"text/html", "application/xhtml+xml"})


@dataclass(frozen=True)
class DownloadOptions:
    """How images are asked for.

    Attributes:
        policy: which addresses URLs may lead to.
        seconds: longest time to fetch one image, redirects included.
        max_byte_count: largest file.
        user_agent: what servers are told about us.
        proxy: the proxy that is asked instead of the images' servers; it resolves names then.
    """

    policy: AddressPolicy
    seconds: float
    max_byte_count: int
    user_agent: str
    proxy: yarl.URL | None = None


@asynccontextmanager
async def open_downloads(options: DownloadOptions) -> AsyncIterator[Downloads]:
    """Yields what fetches images; it keeps connections, and no cookies."""
    policy = options.policy
    if options.proxy:  # the one name that is resolved here
        policy = policy.allowing(options.proxy.host or "")
    resolver = CheckedResolver(policy)
    connector = _Connector(
        resolver=resolver,
        ttl_dns_cache=NAME_CACHE_SECONDS,  # of addresses that were checked
        limit=0,  # the requests' shares are the limit: in one queue for all, one could fill it
        limit_per_host=MAX_HOST_CONNECTION_COUNT,
    )
    session = aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={
            "User-Agent": options.user_agent,
            "Accept": "image/*",
            # An encoded body could grow a thousandfold when it is unpacked.
            "Accept-Encoding": "identity",
        },
        auto_decompress=False,
        proxy=options.proxy,
        trust_env=False,
        timeout=aiohttp.ClientTimeout(total=None),
    )
    try:
        async with session:
            yield Downloads(session, options)
    finally:
        await resolver.close()  # the connector leaves it to who made it


class _Connector(aiohttp.TCPConnector):
    """Tells a download when it has its connection, at less cost than aiohttp's tracing."""

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,
    ) -> Connection:
        connection = await super().connect(req, traces, timeout)
        PROGRESS.get().stage = Stage.ANSWER
        return connection


class Downloads:
    """Fetches images. Its errors never hold the URL or the bytes."""

    def __init__(self, session: aiohttp.ClientSession, options: DownloadOptions) -> None:
        self._session = session
        self._options = options

    async def fetch(self, url: str, share: Share, budget: ImageBudget) -> HeldFile:
        """Returns the file at an http(s):// URL, counted in the share.

        Raises:
            InvalidArgumentError: the URL is malformed, or the request asks too many hosts.
            AccessDeniedError: it leads to an address that is not allowed.
            ImageFetchError: it cannot be read, or not in time.
            ImageTooLargeError: it has too many bytes.
            OverloadedError: all requests together hold too much.
        """
        progress, seconds = _progress(self._options.proxy), self._options.seconds
        first = read_http_url(url)
        PROGRESS.set(progress)
        try:
            return await asyncio.wait_for(self._follow(first, share, budget, progress), seconds)
        except asyncio.TimeoutError as error:
            raise ImageFetchError(lateness(seconds, progress)) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ImageFetchError(failure(error, progress)) from error

    async def _follow(
        self, url: yarl.URL, share: Share, budget: ImageBudget, progress: Progress
    ) -> HeldFile:
        while progress.redirect_count <= MAX_REDIRECT_COUNT:
            budget.visit(self._checked_host(url))
            progress.stage = Stage.CONNECTION
            asking = self._session.get(url, allow_redirects=False)
            async with asking as response:
                if response.status not in REDIRECT_STATUSES:
                    return await self._body(response, share, budget, progress)
                url = _redirected(url, response)
            progress.redirect_count += 1
        raise ImageFetchError(f"the image's URL redirects more than {MAX_REDIRECT_COUNT} times")

    def _checked_host(self, url: yarl.URL) -> str:
        host = url.raw_host or ""
        if address := read_address(host):
            self._options.policy.check(host, address)
        return host

    async def _body(
        self,
        response: aiohttp.ClientResponse,
        share: Share,
        budget: ImageBudget,
        progress: Progress,
    ) -> HeldFile:
        if response.status != 200:
            raise ImageFetchError(bad_status(response.status, progress.server))
        limit = self._options.max_byte_count
        progress.stage, progress.content_length = Stage.BODY, response.content_length
        check_byte_count(response.content_length or 0, limit)
        body = bytearray()
        try:
            async for data in response.content.iter_chunked(READ_BYTE_COUNT):
                check_byte_count(len(body) + len(data), limit)
                budget.spend(len(data))
                share.take(len(data))
                body += data
                progress.byte_count = len(body)
            _check_type(response, body)
        except BaseException:
            body.clear()  # the error's traceback would keep it
            raise
        return HeldFile(body, share)


def _progress(proxy: yarl.URL | None) -> Progress:
    if proxy is None:
        return Progress()
    return Progress("the image's server, or the proxy on the way to it,", "the proxy for images")


def _redirected(url: yarl.URL, response: aiohttp.ClientResponse) -> yarl.URL:
    location = response.headers.get("Location")
    if not location:
        raise ImageFetchError("the image's server redirects, but does not say where")
    try:
        return join(url, location)
    except InvalidArgumentError as error:
        raise ImageFetchError(
            f"the image's server redirects to what is no URL of an image: {error.message}"
        ) from error


def _check_type(response: aiohttp.ClientResponse, body: bytearray) -> None:
    """Refuses a page about the picture; many servers have wrong types for pictures."""
    is_markup = body[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")
    if is_markup and response.content_type in HTML_TYPES:
        raise ImageFetchError(
            "the image's URL is that of a web page (HTML), not of a picture; the picture in it has"
            " a URL of its own"
        )
