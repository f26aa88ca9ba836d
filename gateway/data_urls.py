"""Images in data: URLs, decoded while the body that holds them arrives."""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

from gateway.memory import HeldFile, Share
from protos.errors import (
    ContextLengthError,
    ImageTooLargeError,
    InvalidArgumentError,
    InvalidImageError,
    ServiceError,
)

# In valid JSON this is always a member's name and the begin of its value: within a string a
# quotation mark has a backslash before it. What is longer stays in the text, and is decoded later.
OPENING = re.compile(
    rb'"url"[ \t\r\n]{0,64}:[ \t\r\n]{0,64}"'
    rb'(?P<url>(?i:data):(?:[^"\\,]|\\/|\\u(?!002[cC])[0-9a-fA-F]{4}){0,128}(?i:;base64),)'
)
MAX_OPENING_BYTE_COUNT = 1024
STRING = re.compile(rb'(?:[^"\\]+|\\u[0-9a-fA-F]{4}|\\[^u])*')
ESCAPE_BYTE_COUNT = len(r"\u0000")


class Base64Decoder:
    """Decodes base64 (RFC 4648, section 4) that comes in pieces, strictly.

    Attributes:
        content: what has been decoded.
    """

    def __init__(self, max_byte_count: int) -> None:
        self.content = bytearray()
        self._max_byte_count = max_byte_count
        self._rest = b""
        self._padded = False

    def feed(self, piece: bytes) -> None:
        """Decodes what comes next.

        Raises:
            InvalidImageError: it is not base64.
            ImageTooLargeError: the content has more bytes than it may have.
        """
        data = self._rest + piece
        end = len(data) - len(data) % 4
        self._rest = data[end:]
        if data and self._padded:
            raise _not_base64()
        self._decode(data[:end])

    def finish(self) -> None:
        """Ends the content.

        Raises:
            InvalidImageError: something is missing.
        """
        if self._rest:
            raise _not_base64()

    def _decode(self, data: bytes) -> None:
        try:
            self.content += base64.b64decode(data, validate=True)
        except ValueError:
            raise _not_base64() from None
        self._padded = data.endswith(b"=")
        if len(self.content) > self._max_byte_count:
            raise ImageTooLargeError(
                f"the image has {len(self.content)} bytes or more;"
                f" the limit is {self._max_byte_count}"
            )


def _not_base64() -> InvalidImageError:
    return InvalidImageError("the data URL's base64 is invalid")


def decode_data_url(url: str, max_byte_count: int) -> bytes:
    """Returns the bytes of a `data:...;base64,...` URL (RFC 2397).

    Raises:
        InvalidImageError: it is not base64, or not clean base64.
        ImageTooLargeError: it decodes to more than max_byte_count bytes.
    """
    header, comma, payload = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise InvalidImageError("a data URL must have the form data:image/...;base64,...")
    decoder = Base64Decoder(max_byte_count)
    decoder.feed(payload.encode("ascii", "replace"))
    decoder.finish()
    return bytes(decoder.content)


class AttachedImage:
    """An image that comes in the body of its request; it tells when it is read what is wrong."""

    def __init__(self, max_byte_count: int, share: Share) -> None:
        self._decoder = Base64Decoder(max_byte_count)
        self._share = share
        self._error: ServiceError | None = None
        share.hold(self)

    def feed(self, piece: bytes) -> None:
        """Decodes what comes next; after an error it is passed over.

        Raises:
            OverloadedError: all requests together hold too much.
        """
        if self._error is None:
            before = len(self._decoder.content)
            try:
                self._decoder.feed(piece)
            except (ImageTooLargeError, InvalidImageError) as error:
                self._fail(error, before)
            else:
                self._share.take(len(self._decoder.content) - before)

    def finish(self) -> None:
        """Ends the image."""
        if self._error is None:
            try:
                self._decoder.finish()
            except InvalidImageError as error:
                self._fail(error, len(self._decoder.content))

    def file(self) -> HeldFile:
        """Returns the whole file, once; it is no more in here.

        Raises:
            InvalidImageError: its base64 is wrong.
            ImageTooLargeError: it has too many bytes.
        """
        if self._error is not None:
            raise self._error
        content, self._decoder.content = self._decoder.content, bytearray()
        return HeldFile(content, self._share)

    def let_go(self) -> None:
        """Frees what has been decoded."""
        self._share.give_back(len(self._decoder.content))
        self._decoder.content = bytearray()

    def _fail(self, error: ServiceError, taken_byte_count: int) -> None:
        self._error = error
        self._decoder.content = bytearray()
        self._share.give_back(taken_byte_count)


@dataclass(frozen=True)
class Attachments:
    """The images that came in a request's body.

    Attributes:
        share: counts all that the request holds.
        images: by their names, which stand in the place of URLs and which no client can guess.
    """

    share: Share
    images: dict[str, AttachedImage] = field(default_factory=dict)

    def take(self, name: str) -> HeldFile:
        """Returns an image, once; raises as AttachedImage.file does."""
        return self.images.pop(name).file()

    def check_used(self, urls: Iterable[str]) -> None:
        """Makes sure that each one is an image of the request.

        Raises:
            InvalidArgumentError: one is somewhere else, e.g. in a JSON Schema.
        """
        if not self.images.keys() <= set(urls):
            raise InvalidArgumentError("the body has a base64 data URL where it has no image")


@dataclass(frozen=True)
class Body:
    """A request's body, taken apart.

    Attributes:
        text: JSON in which a name stands in the place of each attached image's URL.
        attachments: what these names stand for.
    """

    text: bytes
    attachments: Attachments


@dataclass(frozen=True)
class ContentLimits:
    """What a body may hold: bytes of text, attached images, bytes of an image's file."""

    max_text_byte_count: int
    max_image_count: int
    max_image_byte_count: int


class BodyReader:
    """Takes a JSON body apart while it arrives, so that no image is ever held as text.

    The decoding happens where it is called: a thread would hold the interpreter's lock for a whole
    image, and this only for the piece that a socket gives.
    """

    def __init__(self, limits: ContentLimits, share: Share) -> None:
        self._limits = limits
        self._share = share
        self._text = bytearray()
        self._attachments = Attachments(share)
        self._image: AttachedImage | None = None
        self._pending = b""
        self._secret = secrets.token_hex(16)
        share.hold(self)

    def feed(self, data: bytes) -> None:
        """Takes what comes next.

        Raises:
            InvalidArgumentError: there are too many images, or it is not JSON.
            ContextLengthError: there is too much text.
            OverloadedError: all requests together hold too much.
        """
        self._pending += data
        while self._read_text() if self._image is None else self._read_image(self._image):
            continue

    def finish(self) -> Body:
        """Returns the body, which is all there."""
        self._keep(self._pending)
        return Body(bytes(self._text), self._attachments)

    def let_go(self) -> None:
        """Frees the text, which the share counts no more."""
        self._text = bytearray()
        self._pending = b""

    def _read_text(self) -> bool:
        """Reads up to the next image, and returns whether there is one."""
        opening = OPENING.search(self._pending)
        if opening is None:
            end = max(0, len(self._pending) - MAX_OPENING_BYTE_COUNT)
            self._keep(self._pending[:end])
            self._pending = self._pending[end:]
            return False
        self._keep(self._pending[: opening.start("url")])
        self._image = self._attach()
        self._pending = self._pending[opening.end() :]
        return True

    def _attach(self) -> AttachedImage:
        count = len(self._attachments.images) + 1
        if count > self._limits.max_image_count:
            raise InvalidArgumentError(
                f"the request has {count} images or more;"
                f" the limit is {self._limits.max_image_count}",
                field="messages",
            )
        name = f"attached:{self._secret}:{count}"
        self._keep(name.encode())
        image = AttachedImage(self._limits.max_image_byte_count, self._share)
        self._attachments.images[name] = image
        return image

    def _read_image(self, image: AttachedImage) -> bool:
        """Reads up to the image's end, and returns whether it has come."""
        end = _string_end(self._pending)
        image.feed(_unescaped(self._pending[:end]))
        self._pending = self._pending[end:]
        if self._pending.startswith(b'"'):
            image.finish()
            self._image = None
        elif len(self._pending) >= ESCAPE_BYTE_COUNT:
            raise _not_json()
        return self._image is None

    def _keep(self, text: bytes) -> None:
        byte_count = len(self._text) + len(text)
        if byte_count > self._limits.max_text_byte_count:
            raise ContextLengthError(
                f"the prompt is too long: the request has {byte_count} bytes of text or more;"
                f" the limit is {self._limits.max_text_byte_count} bytes; shorten the messages"
            )
        self._share.take(len(text))
        self._text += text


def _string_end(data: bytes) -> int:
    """Returns where a JSON string ends, or the last of its characters that is whole."""
    end = data.find(b'"')
    end = len(data) if end < 0 else end
    if data.find(b"\\", 0, end) < 0:  # the usual case, and tens of times faster
        return end
    string = STRING.match(data)
    return string.end() if string else 0


def _unescaped(text: bytes) -> bytes:
    """Returns what a part of a JSON string stands for; no character beyond Latin-1 is base64."""
    if b"\\" not in text:
        return text
    try:
        string: str = json.loads(f'"{text.decode("latin-1")}"')
    except ValueError:
        raise _not_json() from None
    return string.encode("latin-1", "replace")


def _not_json() -> InvalidArgumentError:
    return InvalidArgumentError("the body is not valid JSON")
