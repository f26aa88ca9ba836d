"""The pixels of a scene, and the class and colour of each of its patches."""

from __future__ import annotations

import functools
import math
import zlib
from typing import Final, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from demo_training.assets import load_assets
from demo_training.lexicon import (
    CLASS_OF_CHARACTER,
    CLASS_OF_CONCEPT,
    CLASS_OF_SHAPE,
    COLOURS,
)
from demo_training.scenes import (
    Emoji,
    Form,
    Ground,
    Rgb,
    Scene,
    Sign,
    Thing,
    glyph_size,
)

PATCH: Final = 14
COLOUR_CLASS: Final = {colour: 1 + index for index, colour in enumerate(COLOURS)}
_OVERSAMPLING: Final = 3


class Drawing(NamedTuple):
    """A drawn scene.

    Attributes:
        pixels: uint8 [height, width, 3].
        classes: int16 [height // 14, width // 14], index in lexicon.CLASS_NAMES.
        colours: int16 of the same shape, 0 where no colour is named, else 1 + index in COLOURS.
    """

    pixels: np.ndarray
    classes: np.ndarray
    colours: np.ndarray


def draw(scene: Scene) -> Drawing:
    """Draws the ground, then the things in reading order."""
    pixels = _ground_pixels(scene.ground, scene.width, scene.height)
    patches = (scene.height // PATCH, scene.width // PATCH)
    classes = np.zeros(patches, np.int16)
    colours = np.full(patches, COLOUR_CLASS[scene.ground.colour], np.int16)
    drawing = Drawing(pixels, classes, colours)
    for thing in scene.things:
        if isinstance(thing.look, Emoji):
            _draw_emoji(drawing, thing, thing.look)
        elif isinstance(thing.look, Form):
            _draw_form(drawing, thing, thing.look)
        else:
            _draw_sign(drawing, thing, thing.look)
    return drawing


# Ground: a few different rows, and which of them each line of pixels shows. Copying whole rows
# is ten times faster than computing every pixel.


def _ground_pixels(ground: Ground, width: int, height: int) -> np.ndarray:
    base = np.array(ground.rgb, np.int16)
    tones, order = _tone_rows(ground, width, height)
    rows: np.ndarray = (base + tones[..., None]).clip(0, 255).astype(np.uint8)
    return np.take(rows, order, axis=0)


def _tone_rows(ground: Ground, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns int16 [rows, width] differences from the mean, and int [height] rows to show."""
    across, down = np.arange(width), np.arange(height)
    period, contrast = ground.period, ground.contrast
    first = np.zeros(height, np.intp)
    if ground.pattern == "across":
        return _ramp(across, contrast)[None], first
    if ground.pattern == "columns":
        return _stripes(across, period, contrast)[None], first
    if ground.pattern == "down":
        steps = _ramp(np.arange(32), contrast)
        return np.repeat(steps[:, None], width, axis=1), down * 32 // height
    if ground.pattern == "rows":
        steps = np.array([-contrast // 2, contrast // 2], np.int16)
        return np.repeat(steps[:, None], width, axis=1), down // period % 2
    if ground.pattern == "checks":
        row = _stripes(across, period, contrast)
        return np.stack([row, -row]), down // period % 2
    if ground.pattern == "diagonals":
        starts = np.arange(2 * period)[:, None]
        return _stripes(across + starts, period, contrast), down % (2 * period)
    return np.zeros((1, width), np.int16), first


def _ramp(positions: np.ndarray, contrast: int) -> np.ndarray:
    # Twice the contrast of stripes: a slope is harder to see than an edge.
    return (2 * contrast * (positions / len(positions) - 0.5)).astype(np.int16)


def _stripes(positions: np.ndarray, period: int, contrast: int) -> np.ndarray:
    return ((positions // period % 2) * contrast - contrast // 2).astype(np.int16)


# Sprites and shapes.


class _Stamp(NamedTuple):
    """A sprite ready to paste: pixel = colours + pixel * shade / 256.

    Attributes:
        colours: uint8 [size, size, 3], times coverage.
        shade: uint8 [size, size, 3], 255 - coverage.
        solid: bool [size, size], the covered part, a little widened.
    """

    colours: np.ndarray
    shade: np.ndarray
    solid: np.ndarray


@functools.lru_cache(maxsize=12000)
def _emoji_stamp(style: str, name: str, size: int, variant: int) -> _Stamp:
    image = _variant(style, name, variant)
    pixels = np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))
    coverage = pixels[..., 3]
    colours = np.minimum(pixels[..., :3], coverage[..., None])
    shade = np.ascontiguousarray(np.repeat(255 - coverage[..., None], 3, axis=2))
    return _Stamp(colours, shade, _widened(coverage))


@functools.lru_cache(maxsize=2000)
def _variant(style: str, name: str, variant: int) -> Image.Image:
    """Returns the sprite as it is (0), or in one of two ways to look a little different."""
    image = Image.fromarray(load_assets().sprites[style, name])
    if variant == 0:
        return _premultiplied(image)
    colour = ImageEnhance.Color(image.convert("RGB")).enhance(0.7 if variant == 1 else 1.25)
    colour = ImageEnhance.Brightness(colour).enhance(1.12 if variant == 1 else 0.9)
    colour.putalpha(image.getchannel("A"))
    # Which way it tilts is up to the name, so that neither way goes with a shade.
    turn = 10 if zlib.crc32(f"{style}{name}{variant}".encode()) % 2 else -10
    return _premultiplied(colour).rotate(turn, Image.Resampling.BICUBIC)


def _premultiplied(image: Image.Image) -> Image.Image:
    pixels = np.array(image).astype(np.uint16)
    pixels[..., :3] = pixels[..., :3] * pixels[..., 3:] // 255
    return Image.fromarray(pixels.astype(np.uint8))


def _widened(coverage: np.ndarray) -> np.ndarray:
    # A patch is labelled by its centre pixel: widening lets thin parts reach one.
    mask = Image.fromarray(((coverage > 64) * 255).astype(np.uint8))
    return np.asarray(mask.filter(ImageFilter.BoxBlur(3))) > 2


def _draw_emoji(drawing: Drawing, thing: Thing, look: Emoji) -> None:
    stamp = _emoji_stamp(look.style, look.noun.en, thing.size, look.variant)
    if look.mirrored:
        stamp = _Stamp(*(part[:, ::-1] for part in stamp))
    left, top = thing.x - thing.size // 2, thing.y - thing.size // 2
    area = drawing.pixels[top : top + thing.size, left : left + thing.size]
    blended = np.multiply(area, stamp.shade, dtype=np.uint16)
    blended >>= 8
    np.add(blended, stamp.colours, out=area, casting="unsafe")
    _label(drawing, left, top, stamp.solid, CLASS_OF_CONCEPT[look.noun.en], 0)


def _draw_form(drawing: Drawing, thing: Thing, look: Form) -> None:
    coverage = _form_mask(look.shape.en, thing.size)
    left, top = thing.x - thing.size // 2, thing.y - thing.size // 2
    _paint(drawing.pixels, left, top, coverage, look.rgb)
    number, colour = CLASS_OF_SHAPE[look.shape.en], COLOUR_CLASS[look.colour]
    _label(drawing, left, top, coverage > 127, number, colour)


def _label(
    drawing: Drawing, left: int, top: int, solid: np.ndarray, number: int, colour: int
) -> None:
    """Sets the class and colour of the patches whose centre pixel is in the solid part."""
    row, column = (max(0, math.ceil((edge - PATCH // 2) / PATCH)) for edge in (top, left))
    centres = solid[
        row * PATCH + PATCH // 2 - top :: PATCH, column * PATCH + PATCH // 2 - left :: PATCH
    ]
    height, width = centres.shape
    drawing.classes[row : row + height, column : column + width][centres] = number
    drawing.colours[row : row + height, column : column + width][centres] = colour


def _paint(pixels: np.ndarray, left: int, top: int, coverage: np.ndarray, ink: Rgb) -> None:
    """Lays one colour over the pixels where the uint8 [height, width] coverage says so."""
    height, width = coverage.shape
    area = pixels[top : top + height, left : left + width]
    weight = coverage[..., None].astype(np.uint16)
    weight += weight >> 7  # 0..256
    blended = area * (256 - weight)
    blended += weight * np.array(ink, np.uint16)
    blended >>= 8
    area[:] = blended


@functools.lru_cache(maxsize=256)
def _form_mask(shape: str, size: int) -> np.ndarray:
    side = size * _OVERSAMPLING
    image = Image.new("L", (side, side))
    pen = ImageDraw.Draw(image)
    points = [(side / 2 + 0.47 * side * x, side / 2 + 0.47 * side * y) for x, y in _outline(shape)]
    pen.polygon(points, fill=255)
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


def _outline(shape: str) -> list[tuple[float, float]]:
    """Returns the corners of a shape in -1..1, y downwards."""
    if shape == "square":
        return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    if shape == "triangle":
        return [(0, -1), (1, 0.8), (-1, 0.8)]
    if shape == "diamond":
        return [(0, -1), (0.75, 0), (0, 1), (-0.75, 0)]
    if shape == "star":
        radii = [1 if corner % 2 == 0 else 0.42 for corner in range(10)]
        return [
            (r * math.sin(a * math.pi / 5), -r * math.cos(a * math.pi / 5))
            for a, r in enumerate(radii)
        ]
    angles = [step * math.tau / 120 for step in range(120)]
    if shape == "heart":
        return [(math.sin(a) ** 3, -_heart_height(a)) for a in angles]
    return [(math.cos(a), math.sin(a)) for a in angles]


def _heart_height(angle: float) -> float:
    # The common heart curve: 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, scaled to 17.
    weights = (13, -5, -2, -1)
    return sum(w * math.cos((1 + k) * angle) for k, w in enumerate(weights)) / 17


# Text.


@functools.lru_cache(maxsize=4096)
def _glyph(font: str, character: str, em: int) -> np.ndarray:
    mask = load_assets().glyphs[font, character]
    height, width = glyph_size(mask.shape, em)
    image = Image.fromarray(mask).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _draw_sign(drawing: Drawing, thing: Thing, look: Sign) -> None:
    glyphs = [_glyph(look.font, character, thing.size) for character in look.text]
    line = np.concatenate(glyphs, axis=1)
    left, top = thing.x - line.shape[1] // 2, thing.y - line.shape[0] // 2
    if look.plate is not None:
        _fill_plate(drawing.pixels, left, top, line.shape, look.plate)
    _paint(drawing.pixels, left, top, line, look.rgb)
    colour = COLOUR_CLASS[look.colour]
    for character, glyph in zip(look.text, glyphs, strict=True):
        box = np.ones(glyph.shape, bool)
        _label(drawing, left, top, box, CLASS_OF_CHARACTER[character], colour)
        left += glyph.shape[1]


def _fill_plate(
    pixels: np.ndarray, left: int, top: int, shape: tuple[int, ...], plate: Rgb
) -> None:
    margin = 6
    area = pixels[
        max(0, top - margin) : top + shape[0] + margin,
        max(0, left - margin) : left + shape[1] + margin,
    ]
    area[:] = plate
