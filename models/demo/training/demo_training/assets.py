"""The sprites and glyph masks of `assets.npz`, which `prepare_assets` made."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final

import numpy as np

ASSETS_FILE: Final = Path(__file__).parent / "assets.npz"
GLYPH_EM: Final = 72
TRAINING_STYLES: Final = ("fluent-emoji", "fluent-emoji-flat", "noto", "noto-v1", "fxemoji")
HELD_OUT_STYLE: Final = "twemoji"
LATIN_FONTS: Final = (
    "dejavu-sans-bold",
    "dejavu-serif-bold",
    "dejavu-mono-bold",
    "noto-sans-bold",
    "noto-sans",
    "noto-serif-bold",
)
HAN_FONTS: Final = ("noto-sans-bold", "noto-sans", "noto-serif-bold")
HELD_OUT_LATIN_FONT: Final = "liberation-sans-bold"
HELD_OUT_HAN_FONT: Final = "noto-serif"


class Assets:
    """Everything that pictures are made of.

    Attributes:
        sprites: uint8 [128, 128, 4], colours not premultiplied, by (style, English name).
        glyphs: uint8 [height, width] coverage at an em of 72 pixels, by (font, character).
    """

    def __init__(self, path: Path = ASSETS_FILE) -> None:
        """Reads the file."""
        with np.load(path) as arrays:
            pixels = arrays["sprite_pixels"]
            self.sprites: dict[tuple[str, str], np.ndarray] = {
                _pair(key): pixels[index] for index, key in enumerate(arrays["sprite_keys"])
            }
            shapes = arrays["glyph_shapes"].astype(int)
            ends = np.cumsum(shapes.prod(axis=1))
            masks = np.split(arrays["glyph_masks"], ends[:-1])
            self.glyphs: dict[tuple[str, str], np.ndarray] = {
                _pair(key): mask.reshape(shape)
                for key, mask, shape in zip(arrays["glyph_keys"], masks, shapes, strict=True)
            }

    @functools.cached_property
    def training_styles(self) -> dict[str, tuple[str, ...]]:
        """The styles that a concept may be trained in, by its English name."""
        names = {name for _, name in self.sprites}
        return {
            name: tuple(style for style in TRAINING_STYLES if (style, name) in self.sprites)
            for name in names
        }

    @functools.cached_property
    def mean_colours(self) -> dict[tuple[str, str], tuple[float, ...]]:
        """The mean red, green and blue (0-255) of each sprite's visible part."""
        return {key: _mean_colour(sprite) for key, sprite in self.sprites.items()}


@functools.cache
def load_assets() -> Assets:
    """Returns the committed assets, read once a process."""
    return Assets()


def _pair(key: str) -> tuple[str, str]:
    left, right = str(key).split("|", 1)
    return left, right


def _mean_colour(sprite: np.ndarray) -> tuple[float, ...]:
    weights = sprite[..., 3].ravel().astype(np.float64)
    return tuple(np.average(sprite[..., :3].reshape(-1, 3), axis=0, weights=weights).tolist())
