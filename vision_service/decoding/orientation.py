"""The orientation that a file's metadata asks for, found without reading the rest of it."""

from __future__ import annotations

import re
import struct

EXIF_PREFIX = b"Exif\0\0"
ORIENTATION_TAG = 274
UPRIGHT = 1
TURNED = range(2, 9)
# Field types of TIFF 6.0 -> how struct reads one value.
INTEGERS = {1: "B", 3: "H", 4: "I"}
BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def read_orientation(exif: bytes, xmp: bytes) -> int:
    """Returns the orientation, 1 to 8; that of EXIF goes before that of XMP.

    Args:
        exif: a block of EXIF, whole or damaged; empty when there is none.
        xmp: likewise.
    """
    found = _exif_orientation(exif)
    if found is None and (match := XMP_ORIENTATION.search(xmp)):
        found = int(match[1])
    return found if found is not None and found in TURNED else UPRIGHT


def exif_of(orientation: int) -> bytes:
    """Returns a block of EXIF that says this and nothing else."""
    entry = struct.pack("<HHIHH", ORIENTATION_TAG, 3, 1, orientation, 0)
    return b"II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)


def _exif_orientation(exif: bytes) -> int | None:
    """Returns what the first directory has, if anything: the others are about previews."""
    while exif.startswith(EXIF_PREFIX):
        exif = exif.removeprefix(EXIF_PREFIX)
    order = BYTE_ORDERS.get(exif[:4])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (entry_count,) = struct.unpack_from(f"{order}H", exif, start)
        for position in range(start + 2, start + 2 + 12 * entry_count, 12):
            tag, kind, _ = struct.unpack_from(f"{order}HHI", exif, position)
            if tag == ORIENTATION_TAG and kind in INTEGERS:
                return int(struct.unpack_from(order + INTEGERS[kind], exif, position + 8)[0])
    except struct.error:
        pass
    return None
