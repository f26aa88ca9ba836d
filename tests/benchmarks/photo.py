"""Pictures made for measuring: they take as long to decode as photos do."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def photo(format_: str, width: int, height: int, seed: int = 0) -> bytes:
    """Returns an encoded picture that compresses as a photo does: soft shapes, gradients, grain."""
    random = np.random.default_rng(seed)
    soft = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    shapes = np.asarray(soft.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    gradient = np.linspace(-40, 40, width, dtype=np.float32)[:, None]
    grain = random.normal(0, 6, (height, width, 1)).astype(np.float32)
    pixels = np.clip(shapes + gradient + grain, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format_, quality=90)
    return file.getvalue()
