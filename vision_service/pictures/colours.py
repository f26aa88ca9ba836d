"""Colours: what the pixels of any of Pillow's modes become as RGB, eight bits each.

Colour profiles are ignored, as the reference does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from protos.errors import InvalidImageError
from vision_service.pictures.transparency import Transparency

Band = Callable[[Image.Image], Image.Image]
# A picture is converted so many pixels at a time: that takes the least memory, and stays in a
# core's cache.
BAND_PIXEL_COUNT = 65_536
# Fields of TIFF 6.0, and how they say that zero is white, and that numbers have no sign.
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
WHITE_IS_ZERO, UNSIGNED = 0, 1


def to_rgb(image: Image.Image, transparency: Transparency) -> Image.Image:
    """Returns a decoded picture as RGB; itself, if it is that already.

    Grey of 9 to 16 bits keeps its upper eight. Grey of 32 bits or of floating point has no range
    of its own: its least value becomes black, its largest white; a picture of one value is black.

    Args:
        image: of any mode; it may lose what says which of its colours is transparent.
        transparency: "white" puts what is transparent on white; "drop" shows the colours that
            transparent pixels have, which no viewer does, but the reference.

    Raises:
        InvalidImageError: it has values that are no numbers.
    """
    if transparency == "drop":
        image.info.pop("transparency", None)
    if image.mode.startswith("I;16"):
        return _in_bands(image, _upper_bits(image))
    if image.mode in ("I", "F"):
        return _in_bands(image, _whole_range(image))
    if image.mode == "La":  # of which Pillow converts nothing else
        image = image.convert("LA")
    if transparency == "white" and image.has_transparency_data and not _is_hidden(image):
        return _in_bands(image, _on_white)
    return image if image.mode == "RGB" else image.convert("RGB")


def _in_bands(image: Image.Image, convert: Band) -> Image.Image:
    rgb = Image.new("RGB", image.size)
    for top, band in _bands(image):
        rgb.paste(convert(band), (0, top))
    return rgb


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yields pieces of a picture from the top down, and where each begins."""
    row_count = max(1, BAND_PIXEL_COUNT // image.width)
    for top in range(0, image.height, row_count):
        yield top, image.crop((0, top, image.width, min(top + row_count, image.height)))


def _is_hidden(image: Image.Image) -> bool:
    """Whether all of a BMP is transparent, which browsers take for an alpha that is not used."""
    return image.format == "BMP" and image.getchannel("A").getextrema() == (0, 0)


def _on_white(band: Image.Image) -> Image.Image:
    """Returns value x alpha + 255 x (1 - alpha) of each colour, rounded to the nearest integer."""
    with_alpha = band if band.mode in ("RGBA", "LA") else band.convert("RGBA")
    white = Image.new("RGB", band.size, "white")
    white.paste(with_alpha, mask=with_alpha)
    return white


def _upper_bits(image: Image.Image) -> Band:
    """Returns what makes grey of 9 to 16 bits RGB, white where it is transparent."""
    shift = (_field(image, BITS_PER_SAMPLE) or 16) - 8
    is_inverted = _field(image, PHOTOMETRIC) == WHITE_IS_ZERO
    transparent = image.info.get("transparency")

    def convert(band: Image.Image) -> Image.Image:
        values = np.asarray(band)
        levels = (values >> shift).astype(np.uint8)
        if transparent is not None:
            levels[values == transparent] = 255
        return _grey(levels, is_inverted)

    return convert


def _whole_range(image: Image.Image) -> Band:
    """Returns what makes numbers without a range of their own RGB."""
    is_inverted = _field(image, PHOTOMETRIC) == WHITE_IS_ZERO
    is_unsigned = image.mode == "I" and _field(image, SAMPLE_FORMAT, UNSIGNED) == UNSIGNED
    ranges = [_range(_numbers(band, is_unsigned)) for _, band in _bands(image)]
    least, largest = min(low for low, _ in ranges), max(high for _, high in ranges)
    span = largest - least or 1.0

    def convert(band: Image.Image) -> Image.Image:
        shares = (_numbers(band, is_unsigned) - least) / span
        return _grey((255 * shares + 0.5).astype(np.uint8), is_inverted)

    return convert


def _range(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    if not np.isfinite(values).all():
        raise InvalidImageError(
            "the image has pixels that are no finite numbers; send it without them", field="image"
        )
    return float(values.min()), float(values.max())


def _numbers(band: Image.Image, is_unsigned: bool) -> npt.NDArray[np.float64]:
    values = np.asarray(band)
    # Pillow takes all integers for signed ones.
    return (values.view(np.uint32) if is_unsigned else values).astype(np.float64)


def _grey(levels: npt.NDArray[np.uint8], is_inverted: bool) -> Image.Image:
    return Image.fromarray(~levels if is_inverted else levels).convert("RGB")


def _field(image: Image.Image, tag: int, default: int | None = None) -> int | None:
    """Returns a TIFF's field, the first sample's; the default for other files."""
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return value[0] if isinstance(value, tuple) else value
