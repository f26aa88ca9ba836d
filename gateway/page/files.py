"""The page's files as they are sent: read once, compressed once, named by their content."""

from __future__ import annotations

import gzip
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from aiohttp import ETag

FOLDER = Path(__file__).parent / "static"
INDEX = "index.html"
DOCS = "docs.html"
# Python's own table differs between its versions, and with the machine's.
CONTENT_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
}
TEXTUAL = re.compile(r"text/|image/svg")
CODING = re.compile(r"([^\s;,]+)(?:\s*;\s*q=([0-9.]+))?", re.IGNORECASE)


@dataclass(frozen=True)
class Body:
    """The bytes of a file in one coding; `coding` is empty where they are as in the folder."""

    data: bytes
    coding: str
    etag: ETag


@dataclass(frozen=True)
class PageFile:
    """A file of the page.

    Attributes:
        content_type: what its bytes are; text is in UTF-8.
        plain: its bytes.
        compressed: the same by gzip; None where that saves nothing.
    """

    content_type: str
    plain: Body
    compressed: Body | None

    @property
    def charset(self) -> str | None:
        return "utf-8" if TEXTUAL.match(self.content_type) else None

    def body(self, accept_encoding: str) -> Body:
        """Returns the bytes that a client gets which accepts these codings."""
        return self.compressed if self.compressed and accepts_gzip(accept_encoding) else self.plain


@cache
def page_files() -> dict[str, PageFile]:
    """Returns all files by their paths below /page/: what is not here cannot be had."""
    paths = sorted(path for path in FOLDER.rglob("*") if path.is_file())
    return {path.relative_to(FOLDER).as_posix(): _read(path) for path in paths}


def _read(path: Path) -> PageFile:
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()[:32]
    packed = gzip.compress(data, mtime=0)
    return PageFile(
        CONTENT_TYPES[path.suffix],
        Body(data, "", ETag(digest)),
        Body(packed, "gzip", ETag(f"{digest}-gzip")) if len(packed) < 0.9 * len(data) else None,
    )


def accepts_gzip(accept_encoding: str) -> bool:
    """Returns whether an Accept-Encoding header allows gzip; q=0 forbids it."""
    weights = {name.lower(): weight for name, weight in CODING.findall(accept_encoding)}
    weight = weights.get("gzip", weights.get("*", "0"))
    return not re.fullmatch(r"[0.]+", weight)
