"""What opens an image file: one plug-in of Pillow for each format, and never another one."""

from __future__ import annotations

import importlib
import io
from typing import cast

import numpy as np
from PIL import Image, ImageFile

from protos.errors import InvalidImageError
from vision_service.pictures.formats import FORMATS
from vision_service.pictures.rows import load_all_rows

# Not by Image.open, which imports further plug-ins, and tries them.
PLUGINS = {
    "JPEG": ("PIL.JpegImagePlugin", "JpegImageFile"),
    "PNG": ("PIL.PngImagePlugin", "PngImageFile"),
    "WEBP": ("PIL.WebPImagePlugin", "WebPImageFile"),
    "BMP": ("PIL.BmpImagePlugin", "BmpImageFile"),
    "GIF": ("PIL.GifImagePlugin", "GifImageFile"),
    "TIFF": ("PIL.TiffImagePlugin", "TiffImageFile"),
    "AVIF": ("PIL.AvifImagePlugin", "AvifImageFile"),
    "HEIC": ("pillow_heif.as_plugin", "HeifImageFile"),
}
# What Pillow multiplies the grey levels of a PNG by that has fewer bits than eight.
GREY_FACTORS = {2: 85, 4: 17}
# Where a PNG's header has the bits of a sample.
PNG_BITS_PLACE = 24


def import_plugins() -> None:
    """Imports what opens the formats, which the first file of each would wait for."""
    for format_ in FORMATS:
        _plugin(format_)


def open_image(data: bytes, format_: str) -> ImageFile.ImageFile:
    """Returns the file's first picture, not yet decoded.

    Args:
        data: the file.
        format_: one of FORMATS.

    Raises:
        InvalidImageError: a TIFF of pixels that Pillow has no mode for.
        OSError, SyntaxError, ...: what Pillow raises of damaged files (tiling.DECODE_ERRORS).
    """
    plugin = _plugin(format_)
    try:
        return plugin(io.BytesIO(data))
    except SyntaxError as error:
        if format_ == "TIFF" and "pixel mode" in str(error):
            raise InvalidImageError(
                "the image is a TIFF file whose bits or samples a pixel are not among those that "
                "are decoded here; send it as a PNG or JPEG file",
                field="image",
            ) from error
        raise


def load_image(image: ImageFile.ImageFile, data: bytes) -> None:
    """Decodes a picture.

    A PNG names its transparent colour in the file's own bits, and Pillow finds it in eight: the
    name is put right, or becomes an alpha.

    Args:
        image: as `open_image` returns it.
        data: its file.

    Raises:
        OSError, SyntaxError, ...: as `open_image`.
    """
    load_all_rows(image, data)
    if image.format != "PNG" or "transparency" not in image.info:
        return
    if image.mode == "L":
        image.info["transparency"] *= GREY_FACTORS.get(data[PNG_BITS_PLACE], 1)
    elif image.mode == "RGB" and data[PNG_BITS_PLACE] == 16:
        image.putalpha(_alpha_of_key(image, data))


def _alpha_of_key(image: ImageFile.ImageFile, data: bytes) -> Image.Image:
    """Returns 0 where a picture of 16 bits has the transparent colour, which is taken from it."""
    key = np.array(image.info.pop("transparency"))
    lower = open_image(data, "PNG")
    # Pillow has the upper eight bits. With the bytes in the other order it takes the lower ones.
    lower.tile = [lower.tile[0]._replace(args="RGB;16L")]
    lower.load()
    alpha = Image.new("L", image.size, 255)
    for top in range(image.height):
        box = (0, top, image.width, top + 1)
        values = np.asarray(image.crop(box)).astype(int) << 8 | np.asarray(lower.crop(box))
        alpha.paste(Image.fromarray((values != key).any(axis=2)), box)
    return alpha


def _plugin(format_: str) -> type[ImageFile.ImageFile]:
    module_name, class_name = PLUGINS[format_]
    module = importlib.import_module(module_name)
    # A decoder has one core, and threads would take memory of their own.
    if format_ == "AVIF":
        module.DEFAULT_MAX_THREADS = 1  # type: ignore[attr-defined]
    elif format_ == "HEIC":
        module.options.DECODE_THREADS = 1
    return cast(type[ImageFile.ImageFile], getattr(module, class_name))
