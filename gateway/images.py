"""Image files from their URLs: data:, file:// below one root, http(s):// from allowed addresses."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import aiohttp
import yarl

from gateway.addresses import AddressPolicy, CheckedResolver, is_numeric
from protos.errors import (
    AccessDeniedError,
    ImageFetchError,
    ImageTooLargeError,
    InvalidArgumentError,
    InvalidImageError,
    ServiceError,
)

MAX_REDIRECT_COUNT = 3
REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
# RFC 8089: the host is empty or this machine's.
FILE_URL = re.compile(r"file:(?://(?:localhost)?)?(?P<path>/(?!/).*)", re.IGNORECASE | re.DOTALL)
READ_BYTE_COUNT = 64 * 1024
REQUEST_HEADERS = {
    "User-Agent": "internvl-gateway",
    "Accept": "image/*",
    # An encoded body could grow a thousandfold when it is unpacked.
    "Accept-Encoding": "identity",
}


@dataclass
class ByteBudget:
    """How many bytes one request may still spend on images."""

    limit: int
    spent: int = 0

    def spend(self, byte_count: int) -> None:
        """Takes bytes off the budget.

        Raises:
            ImageTooLargeError: it is used up.
        """
        self.spent += byte_count
        if self.spent > self.limit:
            raise ImageTooLargeError(
                f"the images of the request have more than {self.limit} bytes together"
            )


@dataclass(frozen=True)
class ImageLimits:
    """What one image may cost.

    Attributes:
        max_byte_count: largest file.
        fetch_seconds: longest time to fetch one over HTTP, redirects included.
        file_root: folder below which file:// URLs may read; None refuses them.
        policy: which addresses http(s):// URLs may lead to.
    """

    max_byte_count: int
    fetch_seconds: float
    file_root: Path | None
    policy: AddressPolicy


def create_session(policy: AddressPolicy) -> aiohttp.ClientSession:
    """Returns an HTTP session that connects to checked addresses only, and keeps no cookies."""
    connector = aiohttp.TCPConnector(resolver=CheckedResolver(policy), use_dns_cache=False)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=REQUEST_HEADERS,
        auto_decompress=False,
        trust_env=False,
        timeout=aiohttp.ClientTimeout(total=None),
    )


class ImageFetcher:
    """Reads image files. Its errors name the request's field, never the URL or the bytes."""

    def __init__(self, session: aiohttp.ClientSession, limits: ImageLimits) -> None:
        self._session = session
        self._limits = limits

    async def fetch(self, url: str, param: str, budget: ByteBudget) -> bytes:
        """Returns the encoded file.

        Args:
            url: where it is.
            param: JSON path of the URL in the request, for errors.
            budget: what the request may still spend.

        Raises:
            InvalidArgumentError: the URL is malformed or of another scheme.
            InvalidImageError: the file is empty, or its base64 is wrong.
            ImageTooLargeError: it has too many bytes.
            ImageFetchError: it cannot be read, or not in time.
            AccessDeniedError: the address or the folder is not allowed.
        """
        try:
            image = await self._read(url, budget)
            if not image:
                raise InvalidImageError("the image is empty: 0 bytes")
        except ServiceError as error:
            error.field = param
            raise
        return image

    async def _read(self, url: str, budget: ByteBudget) -> bytes:
        scheme = url[: len("https:")].partition(":")[0].lower()
        if scheme in ("http", "https"):
            return await self._download(url, budget)
        if scheme == "data":
            image = await asyncio.to_thread(decode_data_url, url, self._limits.max_byte_count)
        elif scheme == "file":
            image = await asyncio.to_thread(
                read_file_url, url, self._limits.file_root, self._limits.max_byte_count
            )
        else:
            raise InvalidArgumentError(
                "an image's URL must start with data:, file://, http:// or https://"
            )
        budget.spend(len(image))
        return image

    async def _download(self, url: str, budget: ByteBudget) -> bytes:
        seconds = self._limits.fetch_seconds
        try:
            return await asyncio.wait_for(self._follow(url, budget), seconds)
        except asyncio.TimeoutError as error:
            raise ImageFetchError(f"the image did not arrive within {seconds:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ImageFetchError(
                "the image's server could not be reached, or broke off"
            ) from error
        except ValueError as error:  # yarl, and the codec of host names
            raise InvalidArgumentError("the image's URL is malformed") from error

    async def _follow(self, location: str, budget: ByteBudget) -> bytes:
        url = yarl.URL(location)
        for _ in range(1 + MAX_REDIRECT_COUNT):
            self._check(url)
            async with self._session.get(url, allow_redirects=False) as response:
                if response.status not in REDIRECT_STATUSES:
                    return await self._body(response, budget)
                url = url.join(yarl.URL(response.headers.get("Location", "")))
        raise ImageFetchError(f"the image's URL redirects more than {MAX_REDIRECT_COUNT} times")

    def _check(self, url: yarl.URL) -> None:
        if url.scheme not in ("http", "https") or not url.raw_host:
            raise InvalidArgumentError("the image's URL, or its redirect, is not http(s)://host/")
        if url.raw_user is not None or url.raw_password is not None:
            raise InvalidArgumentError("the image's URL must not hold a user name or password")
        if is_numeric(url.raw_host):
            self._limits.policy.check(url.raw_host, url.raw_host)

    async def _body(self, response: aiohttp.ClientResponse, budget: ByteBudget) -> bytes:
        if response.status != 200:
            raise ImageFetchError(f"the image's server answered with status {response.status}")
        limit = self._limits.max_byte_count
        _check_size(response.content_length or 0, limit)
        body = bytearray()
        async for data in response.content.iter_chunked(READ_BYTE_COUNT):
            body += data
            _check_size(len(body), limit)
            budget.spend(len(data))
        return bytes(body)


def decode_data_url(url: str, max_byte_count: int) -> bytes:
    """Returns the bytes of a `data:...;base64,...` URL (RFC 2397, RFC 4648 section 4).

    Raises:
        InvalidImageError: it is not base64, or not clean base64.
        ImageTooLargeError: it decodes to more than max_byte_count bytes.
    """
    header, comma, payload = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise InvalidImageError("a data URL must have the form data:image/...;base64,...")
    _check_size(len(payload) // 4 * 3 - payload[-2:].count("="), max_byte_count)
    try:
        return base64.b64decode(payload, validate=True)
    except ValueError as error:
        raise InvalidImageError("the data URL's base64 is invalid") from error


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
    match = FILE_URL.fullmatch(url)
    path = unquote(match["path"]) if match else ""
    if not path or "\0" in path:
        raise InvalidArgumentError("a file URL must have the form file:///path")
    try:
        with os.fdopen(_open_below(os.path.realpath(root), os.path.realpath(path)), "rb") as file:
            image = file.read(max_byte_count + 1)
    except OSError as error:
        raise ImageFetchError("the image's file cannot be read") from error
    _check_size(len(image), max_byte_count)
    return image


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


def _check_size(byte_count: int, limit: int) -> None:
    if byte_count > limit:
        raise ImageTooLargeError(f"the image has {byte_count} bytes or more; the limit is {limit}")
