"""Images in base64, decoded while the body that holds them arrives."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from gateway.images.forgiving_base64 import Base64Decoder
from gateway.images.http_urls import stripped
from gateway.images.json_paths import JSONPath, PathReader
from gateway.memory import HeldFile, Share
from protos.errors import (
    ContextLengthError,
    ImageTooLargeError,
    InvalidArgumentError,
    InvalidImageError,
    ServiceError,
)

IN_BASE64 = re.compile(r"; *base64[ \f]*\Z", re.IGNORECASE)
# In valid JSON this is always a member's name and the begin of its value: within a string a
# quotation mark has a backslash before it. What is longer stays in the text, and is decoded later.
DATA_URL = (
    rb'url"(?:(?<="url")|(?<="image_url"))[ \t\r\n]{0,64}:[ \t\r\n]{0,64}"'
    rb"(?P<url>(?:[ \t\r\n]|\\[trnf]){0,32}(?i:data):"
    rb'(?:[^"\\,#]|\\[/trnf]|\\u(?!002[cC3])[0-9a-fA-F]{4}){0,128}(?i:; {0,8}base64) {0,8},)'
)
OPENING = re.compile(DATA_URL + rb'|"data"[ \t\r\n]{0,64}:[ \t\r\n]{0,64}"')
MAX_OPENING_BYTE_COUNT = 1024
MAX_NAME_LENGTH = 64
STRING = re.compile(rb'(?:[^"\\]+|\\u[0-9a-fA-F]{4}|\\[^u])*')
ESCAPED_BACKSLASH = rb"\\"
# In base64 and between its lines; they are replaced many times faster than read as JSON.
USUAL_ESCAPES = ((rb"\/", b"/"), (rb"\n", b"\n"), (rb"\r", b"\r"))
ESCAPE_BYTE_COUNT = len(r"\u0000")


def decode_data_url(url: str, max_byte_count: int) -> bytes:
    """Returns the bytes of a data: URL, read as browsers do (https://fetch.spec.whatwg.org/#data-urls).

    Raises:
        InvalidImageError: it has no comma, or what it says to be base64 is none.
        ImageTooLargeError: it decodes to more than max_byte_count bytes.
    """
    whole = stripped(url).partition("#")[0]
    media_type, comma, payload = whole.partition(",")
    if not comma:
        raise InvalidImageError("a data URL must have the form data:image/png;base64,...: no comma")
    data = payload.encode("utf-8", "surrogatepass")
    if IN_BASE64.search(media_type):
        decoder = Base64Decoder(max_byte_count)
        decoder.feed(data)
        decoder.finish()
        return bytes(decoder.content)
    if ";base64" in media_type.lower():
        raise InvalidImageError("in a data URL ';base64' must be the last before the comma")
    content = unquote_to_bytes(data)
    if len(content) > max_byte_count:
        raise ImageTooLargeError(
            f"the image has {len(content)} bytes; the limit is {max_byte_count}"
        )
    return content


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
        self._advance(self._decoder.feed, piece)

    def finish(self) -> None:
        """Ends the image; raises as `feed` does."""
        self._advance(self._decoder.finish)

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

    def _advance(self, step: Callable[..., None], *arguments: bytes) -> None:
        if self._error is None:
            before = len(self._decoder.content)
            try:
                step(*arguments)
            except (ImageTooLargeError, InvalidImageError) as error:
                self._fail(error, before)
            else:
                self._share.take(len(self._decoder.content) - before)

    def _fail(self, error: ServiceError, taken_byte_count: int) -> None:
        self._error = error
        self._decoder.content = bytearray()
        self._share.give_back(taken_byte_count)


@dataclass(frozen=True)
class Attachments:
    """The images that came in a request's body.

    Attributes:
        share: counts all that the request holds.
        from_loopback: whether the client is on this machine, and may be told about its folders.
        images: by their names, which stand in the place of URLs and which no client can guess.
    """

    share: Share
    from_loopback: bool = False
    images: dict[str, AttachedImage] = field(default_factory=dict)

    def take(self, name: str) -> HeldFile:
        """Returns an image, once; raises as AttachedImage.file does."""
        return self.images.pop(name).file()


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

    def __init__(
        self,
        limits: ContentLimits,
        share: Share,
        places: Collection[JSONPath],
        *,
        from_loopback: bool = False,
    ) -> None:
        """`places` are those of images: URLs, and base64 named "data". Elsewhere both are text."""
        self._limits = limits
        self._share = share
        self._text = bytearray()
        self._attachments = Attachments(share, from_loopback)
        self._image: AttachedImage | None = None
        self._pending = b""
        self._secret = secrets.token_hex(16)
        self._places = places
        self._paths = PathReader()
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
        kept_end = 0
        for opening in OPENING.finditer(self._pending):
            begin = opening.end() if opening["url"] is None else opening.start("url")
            self._keep(self._pending[kept_end:begin])
            kept_end = begin
            if self._is_at_an_image():
                self._image = self._attach()
                self._pending = self._pending[opening.end() :]
                return True
        end = max(kept_end, len(self._pending) - MAX_OPENING_BYTE_COUNT)
        self._keep(self._pending[kept_end:end])
        self._pending = self._pending[end:]
        return False

    def _is_at_an_image(self) -> bool:
        """Whether the string whose quotation mark is the text's last byte is an image."""
        return self._paths.path_at(self._text, len(self._text) - 1) in self._places

    def _attach(self) -> AttachedImage:
        count = len(self._attachments.images) + 1
        if count > self._limits.max_image_count:
            raise InvalidArgumentError(
                f"the request has {count} images or more;"
                f" the limit is {self._limits.max_image_count}",
                field=self._outermost_name(),
            )
        name = f"attached:{self._secret}:{count}"
        self._keep(name.encode())
        image = AttachedImage(self._limits.max_image_byte_count, self._share)
        self._attachments.images[name] = image
        return image

    def _outermost_name(self) -> str:
        """Returns the name of the body's member that the text's last byte is in."""
        name, *_ = (*PathReader().path_at(self._text, len(self._text) - 1), None)
        return (name or b"").decode(errors="replace")[:MAX_NAME_LENGTH]

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
                f" the limit is {self._limits.max_text_byte_count}; an image counts as text unless"
                " its URL has the form data:image/png;base64,..."
            )
        self._share.take(len(text))
        self._text += text


def _string_end(data: bytes) -> int:
    """Returns where a JSON string ends, or the last of its characters that is whole."""
    end = data.find(b'"')
    end = len(data) if end < 0 else end
    begin = data.rfind(b"\\", 0, end)
    if begin < 0:  # the usual case
        return end
    if data.find(ESCAPED_BACKSLASH, 0, end) >= 0:  # else each backslash begins an escape
        begin = 0
    string = STRING.match(data, begin)
    return string.end() if string else begin


def _unescaped(text: bytes) -> bytes:
    """Returns what a part of a JSON string stands for; raw line feeds are left to the decoder."""
    if b"\\" not in text:
        return text
    if ESCAPED_BACKSLASH not in text:
        for escape, byte in USUAL_ESCAPES:
            text = text.replace(escape, byte)
        if b"\\" not in text:
            return text
    try:
        string: str = json.loads(f'"{text.decode("latin-1")}"', strict=False)
    except ValueError:
        raise _not_json() from None
    return string.encode("utf-8", "surrogatepass")


def _not_json() -> InvalidArgumentError:
    return InvalidArgumentError("the body is not valid JSON")
