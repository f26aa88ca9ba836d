"""Colours: transparency, grey of many bits, and what each kind of pixels becomes as RGB."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from protos.errors import InvalidImageError
from tests.hostile_pictures import chunk, png_file
from tests.unit.vision_service.fakes import encoded, picture
from vision_service.decoding.headers import Header, read_header
from vision_service.pictures.formats import image_format
from vision_service.pictures.transparency import Transparency
from vision_service.tiling import decode

Pixels = npt.NDArray[np.int64]
COLOUR = (10, 200, 30)


def pixels(data: bytes, transparency: Transparency = "white") -> Pixels:
    image = decode(data, image_format(data), 1_000_000, transparency)
    assert image.mode == "RGB"
    return np.asarray(image).astype(np.int64)


def png(values: npt.NDArray[Any], colour_type: int, bits: int, key: tuple[int, ...] = ()) -> bytes:
    """Returns a PNG of rows of samples [height, width, ...]; `key` is its transparent colour."""
    height, width = values.shape[:2]
    samples = values.astype({16: ">u2"}.get(bits, "u1")).reshape(height, -1)
    rows = [
        np.packbits(np.unpackbits(row).reshape(-1, 8)[:, 8 - bits :]) if bits < 8 else row
        for row in samples
    ]
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    transparent = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)) if key else b""
    return png_file((width, height), bits, colour_type, packed, before=transparent)


def test_every_value_with_every_alpha_is_rounded_exactly() -> None:
    values, alphas = np.mgrid[0:256, 0:256]
    with_alpha = np.stack([values, 255 - values, values, alphas], axis=2).astype(np.uint8)
    expected = values * alphas + 255 * (255 - alphas)
    found = pixels(encoded(Image.fromarray(with_alpha)))
    # To the nearest integer; 255 is odd, so that there are no halves.
    assert np.array_equal(found[..., 0], (2 * expected + 255) // 510)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True, "exact": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
    ],
)
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_white_or_dropped(
    name: str, options: dict[str, Any], mode: str
) -> None:
    image = Image.new("RGBA", (8, 8), (*COLOUR, 0)).convert(mode)
    data = encoded(image, name, **options)
    assert pixels(data).min() == 255
    colour = image.convert("RGB").getpixel((0, 0))
    assert np.abs(pixels(data, "drop")[0, 0] - colour).max() <= (3 if name == "AVIF" else 0)


def test_a_heic_file_is_decoded_and_put_on_white() -> None:
    pytest.importorskip("pillow_heif", reason="needs the extra heif").register_heif_opener()
    image = Image.new("RGBA", (64, 48), (*COLOUR, 255))
    image.paste((*COLOUR, 0), (0, 0, 32, 48))
    data = encoded(image, "HEIF", quality=95, chroma=444)
    # What is stored, which is then cropped to the picture.
    assert read_header(data) == Header("HEIC", 64, 64)
    found = pixels(data)
    assert found[:, :24].min() > 250
    assert np.abs(found[:, 40:] - COLOUR).max() < 8
    assert np.abs(pixels(data, "drop") - COLOUR).mean() < 8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB", "1", "CMYK"])
def test_opaque_pictures_are_the_references_either_way(mode: str) -> None:
    image = picture(30, 20).convert(mode)
    name = "TIFF" if mode == "CMYK" else "PNG"
    for transparency in ("white", "drop"):
        found = pixels(encoded(image, name), transparency)
        assert np.array_equal(found, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("name", ["PNG", "GIF"])
@pytest.mark.parametrize("key", [1, b"\xff\0\x80"])
def test_a_palettes_transparency(name: str, key: int | bytes) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([1, 2, 3, *COLOUR, 100, 100, 100])
    image.putdata([0, 1, 2])
    data = encoded(image, name, transparency=key if name == "PNG" else 1)
    is_partial = name == "PNG" and isinstance(key, bytes)
    last = 177 if is_partial else 100  # 100 x 128 / 255 + 255 x 127 / 255
    assert pixels(data).tolist() == [[[1, 2, 3], [255] * 3, [last] * 3]]
    assert pixels(data, "drop")[0, 1].tolist() == [*COLOUR]


@pytest.mark.parametrize(
    ("bits", "colour_type", "values", "key", "expected"),
    [
        (1, 0, [0, 1], (0,), [255, 255]),
        (2, 0, [0, 1, 2, 3], (1,), [0, 255, 170, 255]),
        (4, 0, [0, 5, 11], (5,), [0, 255, 187]),
        (8, 0, [0, 5, 255], (5,), [0, 255, 255]),
        (16, 0, [0x12FF, 0x1280, 0x0001], (0x1280,), [0x12, 255, 0]),
        (8, 2, [[1, 2, 3], [1, 2, 4]], (1, 2, 3), [255, 1]),
        # The same upper bits: only the second one is transparent.
        (16, 2, [[0x0102] * 3, [0x0103] * 3, [0x0203] * 3], (0x0103,) * 3, [1, 255, 2]),
    ],
)
def test_a_transparent_colour_counts_in_the_files_bits(
    bits: int, colour_type: int, values: list[Any], key: tuple[int, ...], expected: list[int]
) -> None:
    data = png(np.array([values]), colour_type, bits, key)
    assert pixels(data)[0, :, 0].tolist() == expected
    opaque = png(np.array([values]), colour_type, bits)
    assert np.array_equal(pixels(data, "drop"), pixels(opaque))


def bmp(alphas: list[int]) -> bytes:
    """Returns a BMP of one row whose masks name an alpha."""
    body = b"".join(bytes([*COLOUR[::-1], alpha]) for alpha in alphas)
    size = (len(alphas), 1)
    info = struct.pack("<IiiHHIIiiII", 56, *size, 1, 32, 3, len(body), 0, 0, 0, 0)
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    return struct.pack("<2sIHHI", b"BM", 70 + len(body), 0, 0, 70) + info + masks + body


def test_a_bmp_whose_alpha_is_all_zero_has_none() -> None:
    assert pixels(bmp([0, 0])).tolist() == [[[*COLOUR]] * 2]
    assert pixels(bmp([0, 255])).tolist() == [[[255] * 3, [*COLOUR]]]


GREY_16 = np.array([[0, 0x00FF, 0x0100, 0x1234, 0x8000, 0xFF7F, 0xFFFF]], dtype=np.uint16)


@pytest.mark.parametrize(
    ("name", "options"),
    [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_adobe_deflate"})],
)
@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_grey_of_16_bits_keeps_its_upper_8(name: str, options: dict[str, Any], mode: str) -> None:
    if name == "PNG" and mode == "I;16B":
        pytest.skip("Pillow writes no such PNG; those that it writes have this order of bytes")
    values = GREY_16.astype(">u2") if mode == "I;16B" else GREY_16
    image = Image.frombytes(mode, (values.shape[1], 1), values.tobytes())
    for transparency in ("white", "drop"):
        found = pixels(encoded(image, name, **options), transparency)
        assert found[0, :, 0].tolist() == (GREY_16[0] >> 8).tolist()


@pytest.mark.parametrize(("colour_type", "channel_count"), [(2, 3), (4, 2), (6, 4)])
def test_colours_of_16_bits_keep_their_upper_8(colour_type: int, channel_count: int) -> None:
    values = np.stack([GREY_16] * channel_count, axis=2)
    if channel_count % 2 == 0:
        values[..., -1] = 0xFFFF
    found = pixels(png(values, colour_type, 16))
    assert found[0, :, 2].tolist() == (GREY_16[0] >> 8).tolist()


def test_alpha_of_16_bits_is_composited() -> None:
    values = np.array([[[0x1280, 0x80FF], [0x1280, 0x0000], [0x1280, 0xFFFF]]])
    expected = [(2 * (0x12 * 0x80 + 255 * 0x7F) + 255) // 510, 255, 0x12]
    assert pixels(png(values, 4, 16))[0, :, 0].tolist() == expected


def tiff(values: npt.NDArray[Any], bits: int, sample_format: int, photometric: int = 1) -> bytes:
    """Returns an uncompressed grey TIFF of one row."""
    body = values.tobytes()
    tags = [
        (256, 4, values.size),
        (257, 4, 1),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, photometric),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, 1),
        (279, 4, len(body)),
        (339, 3, sample_format),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + directory


@pytest.mark.parametrize(
    ("values", "bits", "sample_format", "expected"),
    [
        (np.array([-1.0, 0.0, 1.0], "<f4"), 32, 3, [0, 128, 255]),
        (np.array([0.5, 0.5], "<f4"), 32, 3, [0, 0]),
        (np.array([-1000, 0, 1000], "<i4"), 32, 2, [0, 128, 255]),
        (np.array([0, 2**31, 2**32 - 1], "<u4"), 32, 1, [0, 128, 255]),
        (np.array([-300, -300, 300], "<i2"), 16, 2, [0, 0, 255]),
    ],
)
def test_numbers_without_a_range_get_the_pictures_own(
    values: npt.NDArray[Any], bits: int, sample_format: int, expected: list[int]
) -> None:
    assert pixels(tiff(values, bits, sample_format))[0, :, 0].tolist() == expected


def test_grey_of_12_bits_and_white_that_is_zero() -> None:
    twelve = np.array([0xFF, 0xF8, 0x00], "u1")  # 0xFFF and 0x800
    data = tiff(twelve, 12, 1).replace(
        struct.pack("<HHII", 256, 4, 1, 3), struct.pack("<HHII", 256, 4, 1, 2)
    )
    assert pixels(data)[0, :, 0].tolist() == [0xFF, 0x80]
    assert (
        pixels(tiff(GREY_16[0], 16, 1, photometric=0))[0, :, 0].tolist()
        == (255 - (GREY_16[0] >> 8)).tolist()
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(InvalidImageError, match="no finite numbers; send it without them"):
        pixels(tiff(np.array([0.0, value], "<f4"), 32, 3))


def test_a_tiff_of_other_pixels_is_refused_by_name() -> None:
    with pytest.raises(InvalidImageError, match="TIFF file whose bits or samples a pixel"):
        pixels(tiff(np.array([0.0, 1.0], "<f8"), 64, 3))


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}])
@pytest.mark.parametrize("mode", ["YCbCr", "LAB", "CMYK", "1"])
def test_a_tiffs_colours(mode: str, options: dict[str, Any]) -> None:
    if "jpeg" in options.values() and mode in ("LAB", "1"):
        pytest.skip("not written by Pillow")
    image = picture(32, 32)
    if mode == "1":
        image = image.convert("1")
    found = pixels(encoded(image.convert(mode), "TIFF", **options))
    assert np.abs(found - np.asarray(image.convert("RGB"))).mean() < 8


def ycck(image: Image.Image) -> bytes:
    """Returns a JPEG whose four channels are marked as Adobe's YCCK."""
    data = encoded(image, "JPEG", quality=100, subsampling=0)
    marker = data.index(b"Adobe\0")
    return data[: marker + 11] + b"\2" + data[marker + 12 :]


def test_cmyk_and_ycck_jpegs() -> None:
    cmyk = picture(32, 32).convert("CMYK")
    data = encoded(cmyk, "JPEG", quality=100, subsampling=0)
    assert np.abs(pixels(data) - np.asarray(cmyk.convert("RGB"))).mean() < 3
    # What is stored as C, M and Y is read as luma and chroma; stored and read are inverted.
    stored = 255 - np.asarray(cmyk)
    colours = Image.fromarray(stored[..., :3].copy(), "YCbCr").convert("RGB")
    read = np.concatenate([255 - np.asarray(colours), stored[..., 3:]], axis=2)
    expected = Image.fromarray(255 - read, "CMYK").convert("RGB")
    assert np.abs(pixels(ycck(cmyk)) - np.asarray(expected)).mean() < 6
