"""Image files: from the body, file:// below one root, http(s):// from allowed addresses."""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

import aiohttp
import yarl

from gateway.addresses import AddressPolicy, CheckedResolver, is_numeric
from gateway.data_urls import Attachments, decode_data_url
from gateway.memory import HeldFile, Share
from gateway.pools import Pools
from protos.errors import (
    AccessDeniedError,
    ImageFetchError,
    ImageTooLargeError,
    InvalidArgumentError,
    InvalidImageError,
    OverloadedError,
    ServiceError,
)

Result = TypeVar("Result")

MAX_REDIRECT_COUNT = 3
REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
# RFC 8089: the host is empty or this machine's.
FILE_URL = re.compile(r"file:(?://(?:localhost)?)?(?P<path>/(?!/).*)", re.IGNORECASE | re.DOTALL)
READ_BYTE_COUNT = 64 * 1024
# So that the images of a request ask for each host once.
NAME_CACHE_SECONDS = 10
# Far above what is in use: parsing a URL takes the longer the longer it is, and so does a walk
# along a path.
MAX_URL_LENGTH = 16 * 1024
MAX_PATH_BYTE_COUNT = 4096  # Linux's PATH_MAX
MAX_FOLDER_COUNT = 256
# Of all requests together, to one host; no request opens so many.
MAX_HOST_CONNECTION_COUNT = 64
REQUEST_HEADERS = {
    "User-Agent": "internvl-gateway",
    "Accept": "image/*",
    # An encoded body could grow a thousandfold when it is unpacked.
    "Accept-Encoding": "identity",
}


@dataclass
class ImageBudget:
    """What the images of one request may cost together.

    Attributes:
        max_byte_count: most bytes of all files.
        max_host_count: most hosts that their URLs, and the redirects of these, lead to.
    """

    max_byte_count: int
    max_host_count: int
    byte_count: int = 0
    hosts: set[str] = field(default_factory=set)

    def spend(self, byte_count: int) -> None:
        """Counts more bytes.

        Raises:
            ImageTooLargeError: they are too many.
        """
        self.byte_count += byte_count
        if self.byte_count > self.max_byte_count:
            raise ImageTooLargeError(
                f"the images of the request have {self.byte_count} bytes together or more;"
                f" the limit is {self.max_byte_count}"
            )

    def visit(self, host: str) -> None:
        """Counts another host.

        Raises:
            InvalidArgumentError: they are too many.
        """
        self.hosts.add(host)
        if len(self.hosts) > self.max_host_count:
            raise InvalidArgumentError(
                f"the image URLs lead to {len(self.hosts)} hosts;"
                f" the limit is {self.max_host_count}"
            )


@dataclass(frozen=True)
class ImageLimits:
    """What one image may cost.

    Attributes:
        max_byte_count: largest file.
        fetch_seconds: longest time to fetch one, redirects included.
        file_root: folder below which file:// URLs may read; None refuses them.
        policy: which addresses http(s):// URLs may lead to.
    """

    max_byte_count: int
    fetch_seconds: float
    file_root: Path | None
    policy: AddressPolicy


@asynccontextmanager
async def open_session(policy: AddressPolicy) -> AsyncIterator[aiohttp.ClientSession]:
    """Yields an HTTP session that connects to checked addresses only, and keeps no cookies."""
    resolver = CheckedResolver(policy)
    connector = aiohttp.TCPConnector(
        resolver=resolver,
        ttl_dns_cache=NAME_CACHE_SECONDS,  # of addresses that were checked
        limit=0,  # the requests' shares are the limit: in one queue for all, one could fill it
        limit_per_host=MAX_HOST_CONNECTION_COUNT,
    )
    session = aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=REQUEST_HEADERS,
        auto_decompress=False,
        trust_env=False,
        timeout=aiohttp.ClientTimeout(total=None),
    )
    try:
        async with session:
            yield session
    finally:
        await resolver.close()  # the connector leaves it to who made it


class ImageFetcher:
    """Reads image files. Its errors name the request's field, never the URL or the bytes."""

    def __init__(self, session: aiohttp.ClientSession, pools: Pools, limits: ImageLimits) -> None:
        self._session = session
        self._pools = pools
        self._limits = limits

    async def fetch(
        self, url: str, param: str, attachments: Attachments, budget: ImageBudget
    ) -> HeldFile:
        """Returns the encoded file.

        Args:
            url: where it is.
            param: JSON path of the URL in the request, for errors.
            attachments: images that came with the request; their share counts the file.
            budget: what the request may still spend.

        Raises:
            InvalidArgumentError: the URL is malformed, too long or of another scheme.
            InvalidImageError: the file is empty, or its base64 is wrong.
            ImageTooLargeError: it has too many bytes.
            ImageFetchError: it cannot be read, or not in time.
            AccessDeniedError: the address or the folder is not allowed.
            OverloadedError: all requests together hold too much.
        """
        try:
            file = await self._file(url, attachments, budget)
            if not file.byte_count:
                raise InvalidImageError("the image is empty: 0 bytes")
        except OverloadedError:
            raise
        except ServiceError as error:
            error.field = param
            raise
        return file

    async def _file(self, url: str, attachments: Attachments, budget: ImageBudget) -> HeldFile:
        if url in attachments.images:
            file = attachments.take(url)
            budget.spend(file.byte_count)
            return file
        scheme = url[: len("https:")].partition(":")[0].lower()
        if scheme in ("http", "https"):
            _check_length(url)
            return await self._download(url, attachments.share, budget)
        content = await self._read(scheme, url)
        budget.spend(len(content))
        attachments.share.take(len(content))
        return HeldFile(content, attachments.share)

    async def _read(self, scheme: str, url: str) -> bytes:
        limit = self._limits.max_byte_count
        if scheme == "data":
            return await self._pools.json.run(decode_data_url, url, limit)
        if scheme == "file":
            _check_length(url)
            read = self._pools.files.run(read_file_url, url, self._limits.file_root, limit)
            return await self._in_time(read)
        raise InvalidArgumentError(
            "an image's URL must start with data:, file://, http:// or https://"
        )

    async def _in_time(self, fetching: Awaitable[Result]) -> Result:
        seconds = self._limits.fetch_seconds
        try:
            return await asyncio.wait_for(fetching, seconds)
        except asyncio.TimeoutError as error:
            raise ImageFetchError(f"the image did not arrive within {seconds:g} s") from error

    async def _download(self, url: str, share: Share, budget: ImageBudget) -> HeldFile:
        try:
            return await self._in_time(self._follow(url, share, budget))
        except (aiohttp.ClientError, OSError) as error:
            raise ImageFetchError(
                "the image's server could not be reached, or broke off"
            ) from error
        except ValueError as error:  # yarl, and the codec of host names
            raise InvalidArgumentError("the image's URL is malformed") from error

    async def _follow(self, location: str, share: Share, budget: ImageBudget) -> HeldFile:
        url = yarl.URL(location)
        for _ in range(1 + MAX_REDIRECT_COUNT):
            budget.visit(self._checked_host(url))
            async with self._session.get(url, allow_redirects=False) as response:
                if response.status not in REDIRECT_STATUSES:
                    return await self._body(response, share, budget)
                url = url.join(yarl.URL(response.headers.get("Location", "")))
        raise ImageFetchError(f"the image's URL redirects more than {MAX_REDIRECT_COUNT} times")

    def _checked_host(self, url: yarl.URL) -> str:
        if url.scheme not in ("http", "https") or not url.raw_host:
            raise InvalidArgumentError("the image's URL, or its redirect, is not http(s)://host/")
        if url.raw_user is not None or url.raw_password is not None:
            raise InvalidArgumentError("the image's URL must not hold a user name or password")
        if is_numeric(url.raw_host):
            self._limits.policy.check(url.raw_host, url.raw_host)
        return url.raw_host

    async def _body(
        self, response: aiohttp.ClientResponse, share: Share, budget: ImageBudget
    ) -> HeldFile:
        if response.status != 200:
            raise ImageFetchError(f"the image's server answered with status {response.status}")
        limit = self._limits.max_byte_count
        _check_size(response.content_length or 0, limit)
        body = bytearray()
        async for data in response.content.iter_chunked(READ_BYTE_COUNT):
            _check_size(len(body) + len(data), limit)
            budget.spend(len(data))
            share.take(len(data))
            body += data
        return HeldFile(body, share)


def read_file_url(url: str, root: Path | None, max_byte_count: int) -> bytes:
    """Returns the bytes of a regular file below `root`.

    Raises:
        AccessDeniedError: there is no root, or the file is outside of it or not a regular file.
        ImageFetchError: there is no such file.
        InvalidArgumentError: the URL has another form.
        ImageTooLargeError: it has more than max_byte_count bytes.
    """
    if root is None:
        raise AccessDeniedError("this server reads no files: its option file_root is not set")
    path = _path_of(url)
    try:
        with os.fdopen(_open_below(os.path.realpath(root), os.path.realpath(path)), "rb") as file:
            image = file.read(max_byte_count + 1)
    except OSError as error:
        raise ImageFetchError("the image's file cannot be read") from error
    _check_size(len(image), max_byte_count)
    return image


def _path_of(url: str) -> str:
    match = FILE_URL.fullmatch(url)
    path = unquote(match["path"]) if match else ""
    if not path or "\0" in path:
        raise InvalidArgumentError("a file URL must have the form file:///path")
    if (byte_count := len(path.encode(errors="replace"))) > MAX_PATH_BYTE_COUNT:
        raise InvalidArgumentError(
            f"the file's path has {byte_count} bytes; the limit is {MAX_PATH_BYTE_COUNT}"
        )
    if (folder_count := path.count("/")) > MAX_FOLDER_COUNT:
        raise InvalidArgumentError(
            f"the file's path leads through {folder_count} folders; the limit is {MAX_FOLDER_COUNT}"
        )
    return path


def _open_below(root: str, path: str) -> int:
    """Opens a file step by step from the root, following no link.

    Both paths are free of links when they come; one that appears meanwhile is refused.
    """
    if os.path.commonpath([root, path]) != root:
        raise AccessDeniedError("the image's file is outside the folder that this server may read")
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        *folders, name = os.path.relpath(path, root).split(os.sep)
        for step in folders:
            parent = folder
            folder = os.open(step, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
            os.close(parent)
        # O_NONBLOCK: opening a pipe would wait for its writer.
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise AccessDeniedError("the image's path is not that of a regular file")
    return file


def _check_length(url: str) -> None:
    if len(url) > MAX_URL_LENGTH:
        raise InvalidArgumentError(
            f"the image's URL has {len(url)} characters; the limit is {MAX_URL_LENGTH}"
        )


def _check_size(byte_count: int, limit: int) -> None:
    if byte_count > limit:
        raise ImageTooLargeError(f"the image has {byte_count} bytes or more; the limit is {limit}")
