"""Image files: from the body, or from where their URLs say."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gateway.images.budget import ImageBudget
from gateway.images.data_urls import Attachments, decode_data_url
from gateway.images.downloads import Downloads
from gateway.images.file_urls import read_file_url
from gateway.images.http_urls import MAX_URL_LENGTH, scheme_of, stripped
from gateway.memory import HeldFile
from gateway.pools import Pools
from protos.errors import (
    ImageFetchError,
    InvalidArgumentError,
    InvalidImageError,
    OverloadedError,
    ServiceError,
)
from protos.process.tracing import current_span

SCHEMES = ("http", "https", "file", "data")
# Of a picture's file: the first bytes of PNG, JPEG, GIF, WebP and BMP in base64, or anything long.
BARE_BASE64 = re.compile(r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR|Qk[0-3])|[A-Za-z0-9+/_-]{256}")


@dataclass(frozen=True)
class ImageLimits:
    """What one image may cost.

    Attributes:
        max_byte_count: largest file.
        fetch_seconds: longest time to read a file.
        file_roots: folders below which file:// URLs may read.
    """

    max_byte_count: int
    fetch_seconds: float
    file_roots: tuple[Path, ...]


class ImageFetcher:
    """Reads image files. Its errors name the request's field, never the URL or the bytes."""

    def __init__(self, downloads: Downloads, pools: Pools, limits: ImageLimits) -> None:
        self._downloads = downloads
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
            current_span().set("source", "data")
            file = attachments.take(url)
            budget.spend(file.byte_count)
            return file
        scheme = scheme_of(url)
        if scheme in SCHEMES:  # or it would be a client's words
            current_span().set("source", scheme)
        if scheme in ("http", "https"):
            _check_length(url)
            return await self._downloads.fetch(url, attachments.share, budget)
        content = await self._read(scheme, url, tell_roots=attachments.from_loopback)
        budget.spend(len(content))
        attachments.share.take(len(content))
        return HeldFile(content, attachments.share)

    async def _read(self, scheme: str, url: str, *, tell_roots: bool) -> bytes:
        limits = self._limits
        if scheme == "data":
            return await self._pools.json.run(decode_data_url, url, limits.max_byte_count)
        if scheme != "file":
            raise InvalidArgumentError(_other_form(scheme, url))
        _check_length(url)
        read = partial(read_file_url, tell_roots=tell_roots)
        reading = self._pools.files.run(
            read, stripped(url), limits.file_roots, limits.max_byte_count
        )
        try:
            return await asyncio.wait_for(reading, limits.fetch_seconds)
        except asyncio.TimeoutError as error:
            raise ImageFetchError(
                f"the image's file could not be read within {limits.fetch_seconds:g} s"
            ) from error


def _other_form(scheme: str, url: str) -> str:
    """Returns the sentence for a URL of none of the forms."""
    if BARE_BASE64.match(stripped(url[:512])):
        return "the image's URL is base64 alone; write data:image/png;base64, before it"
    sent = f"; this one starts with {scheme[:32]}:" if scheme else "; this one has no scheme"
    return f"an image's URL must start with data:, file://, http:// or https://{sent}"


def _check_length(url: str) -> None:
    if len(url) > MAX_URL_LENGTH:
        raise InvalidArgumentError(
            f"the image's URL has {len(url)} characters; the limit is {MAX_URL_LENGTH}"
        )
