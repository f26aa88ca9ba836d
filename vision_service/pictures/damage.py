"""What is wrong with an image file that was not decoded, in words for whoever sent it."""

from __future__ import annotations

import re

from protos.errors import InvalidImageError
from vision_service.pictures.chunks import PNG_SIGNATURE

ENDS_EARLY = "it ends before its last pixel"
BROKEN_PIXELS = "its compressed pixels are damaged"
BROKEN_PARTS = "its parts do not fit together"
# A piece of a decoder's own complaint -> what that means. All others speak of Python's insides.
CAUSES = {
    "truncated": ENDS_EARLY,
    "Truncated File Read": ENDS_EARLY,
    "not enough image data": ENDS_EARLY,
    "broken data stream": BROKEN_PIXELS,
    "unrecognized data stream": BROKEN_PIXELS,
    "decoding error": BROKEN_PIXELS,
    "failed to decode": BROKEN_PIXELS,
    "Failed to decode": BROKEN_PIXELS,
    "buffer overrun": BROKEN_PIXELS,
    "could not create decoder": BROKEN_PARTS,
    "image not found in GIF frame": "it has no frame",
    "Unsupported BMP": "it is a BMP of a kind that is not read",
}
# How an image file begins, and how far that may be from where it should be to be told so.
BEGINNINGS = {
    "JPEG": rb"\xff\xd8\xff[\xc0-\xfe]",
    "PNG": re.escape(PNG_SIGNATURE),
    "GIF": rb"GIF8[79]a",
    "WEBP": rb"RIFF.{4}WEBP",
}
BEGINNING = re.compile(
    b"|".join(b"(?P<%b>%b)" % (name.encode(), it) for name, it in BEGINNINGS.items()), re.DOTALL
)
MAX_LEADING_BYTE_COUNT = 1024


def check_beginning(data: bytes) -> None:
    """Looks whether what is not an image has one a little behind its beginning.

    Raises:
        InvalidImageError: it has; lines of a protocol are a usual cause.
    """
    found = BEGINNING.search(data, 1, MAX_LEADING_BYTE_COUNT)
    if found is not None:
        raise InvalidImageError(
            f"the image file has {found.start()} other bytes before its {found.lastgroup} data "
            "begins; send it without them",
            field="image",
        )


def damaged(error: Exception) -> InvalidImageError:
    """Returns the refusal of a file over which a decoder has failed."""
    complaint = str(error)
    causes = [f": {cause}" for piece, cause in CAUSES.items() if piece in complaint]
    return InvalidImageError(
        f"the image file is damaged or cut short{''.join(causes[:1])}", field="image"
    )
