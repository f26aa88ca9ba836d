"""The formats of image files: those that are decoded here, and what other files are called."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec

from PIL import features

from protos.errors import InvalidImageError
from vision_service.pictures.chunks import PNG_SIGNATURE
from vision_service.pictures.damage import check_beginning

# As they are named in sentences; the last ones depend on what is installed.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"),
    *(["AVIF"] if features.check("avif") else []),
    *(["HEIC"] if find_spec("pillow_heif") else []),
)
FORMAT_LIST = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
NOT_AN_IMAGE = f"the image is not a {FORMAT_LIST} file"
# Brands of ISO's base media files (ISO/IEC 23008-12, annex B; AV1 Image File Format, section 6).
AVIF_BRANDS = frozenset({b"avif", b"avis"})
HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
MAX_BRAND_COUNT = 64
# How far a text may begin behind its file's beginning; as browsers do, and PDF's readers.
TEXT_BYTE_COUNT = 1024
MARKUP = re.compile(rb"<(svg|!doctype html|html|head|body)\b", re.IGNORECASE)


def image_format(data: bytes) -> str:
    """Returns which one of FORMATS a file is, by its first bytes.

    Raises:
        InvalidImageError: it is another file; the sentence says which, as far as that can be told.
    """
    for format_, is_it in SIGNATURES:
        if is_it(data):
            if format_ not in FORMATS:
                raise not_decoded(f"a picture in the format {format_}, {MISSING[format_]}")
            return format_
    raise not_an_image(data)


def not_an_image(data: bytes) -> InvalidImageError:
    """Returns the refusal of a file of none of FORMATS."""
    for what, is_it in OTHERS:
        if is_it(data):
            return not_decoded(what)
    check_beginning(data)
    return InvalidImageError(NOT_AN_IMAGE, field="image")


def not_decoded(what: str) -> InvalidImageError:
    """Returns the refusal of a file that is known, and not decoded here."""
    return InvalidImageError(f"the image file is {what}; send a {FORMAT_LIST} file", field="image")


def _begins(*beginnings: bytes) -> Callable[[bytes], bool]:
    return lambda data: data.startswith(beginnings)


def _riff(kind: bytes) -> Callable[[bytes], bool]:
    return lambda data: data[:4] == b"RIFF" and data[8:12] == kind


def _brands(data: bytes) -> list[bytes]:
    """Returns the brands of an ISO base media file, the major one first; none of other files."""
    if data[4:8] != b"ftyp":
        return []
    end = min(int.from_bytes(data[:4], "big"), len(data), 4 * MAX_BRAND_COUNT)
    return [data[8:12], *(data[place : place + 4] for place in range(16, end, 4))]


def _has_brand(brands: frozenset[bytes]) -> Callable[[bytes], bool]:
    """Returns whether a file is of these brands: by its major one, if that says it all."""

    def has_brand(data: bytes) -> bool:
        found = _brands(data)
        if found[:1] and found[0] in AVIF_BRANDS | HEIC_BRANDS:
            return found[0] in brands
        return found[:1] in ([b"mif1"], [b"msf1"]) and not brands.isdisjoint(found)

    return has_brand


def _is_markup(*names: bytes) -> Callable[[bytes], bool]:
    def is_markup(data: bytes) -> bool:
        beginning = data[:TEXT_BYTE_COUNT]
        if not beginning.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
            return False
        found = MARKUP.search(beginning)
        return found is not None and found[1].lower() in names

    return is_markup


MISSING = {
    "AVIF": "which this server's Pillow is built without",
    "HEIC": "which this server decodes once pillow-heif is installed",
}
SIGNATURES: tuple[tuple[str, Callable[[bytes], bool]], ...] = (
    ("JPEG", _begins(b"\xff\xd8\xff")),
    ("PNG", _begins(PNG_SIGNATURE)),
    ("WEBP", _riff(b"WEBP")),
    ("BMP", _begins(b"BM")),
    ("GIF", _begins(b"GIF87a", b"GIF89a")),
    ("TIFF", _begins(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    ("AVIF", _has_brand(AVIF_BRANDS)),
    ("HEIC", _has_brand(HEIC_BRANDS)),
)
OTHERS: tuple[tuple[str, Callable[[bytes], bool]], ...] = (
    ("an SVG drawing", _is_markup(b"svg")),
    ("an HTML page", _is_markup(b"!doctype html", b"html", b"head", b"body")),
    ("a PDF document", lambda data: b"%PDF-" in data[:TEXT_BYTE_COUNT]),
    ("a PostScript document", _begins(b"%!PS")),
    ("a JPEG XL picture", _begins(b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")),
    ("a JPEG 2000 picture", _begins(b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")),
    ("an icon (ICO)", _begins(b"\0\0\1\0")),
    ("a Photoshop document", _begins(b"8BPS")),
    ("an AVI video", _riff(b"AVI ")),
    ("a WebM or Matroska video", _begins(b"\x1aE\xdf\xa3")),
    ("an MP4 or QuickTime video", lambda data: data[4:8] in (b"ftyp", b"moov", b"mdat")),
    ("a ZIP archive", _begins(b"PK\3\4")),
    ("compressed by gzip", _begins(b"\x1f\x8b")),
    ("a data URL, not what it holds", _begins(b"data:image/")),
    ("a pointer of Git LFS, not what it points to", _begins(b"version https://git-lfs")),
)
