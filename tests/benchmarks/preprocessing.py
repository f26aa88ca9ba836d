"""Preprocessing: an encoded file to pixel values, ours against the reference's steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from tests.benchmarks.measurement import measure, median_ms
from tests.benchmarks.photo import photo
from tests.benchmarks.reference import MAX_TILE_COUNT, TILE_SIZE, reference_pixel_values
from tests.benchmarks.report import Report
from tests.tiled_files import tile_file
from vision_service.checkpoint import IMAGENET_MEAN, IMAGENET_STD
from vision_service.engines.torch.engine import normalise
from vision_service.pictures.formats import image_format
from vision_service.tiling import choose_grid, decode

MAX_PIXEL_COUNT = 100_000_000
REPEAT_COUNT = 15
IMAGES = (
    ("JPEG", 640, 480),
    ("JPEG", 1000, 747),
    ("JPEG", 1920, 1080),
    ("JPEG", 4000, 3000),
    ("PNG", 1000, 1000),
)
COMPARED = """\
"Our tiles" is what the vision service hands to its engine: uint8, by `vision_service.tiling`. "Our
pixel values" adds the engine's first step, `normalise`, so that the product is the reference's.
"Reference" is OpenGVLab's published steps (Pillow: decode, resize, crop every tile; ToTensor and
Normalize tile by tile; stack), written out in tests/benchmarks/reference.py with the torch
operations that torchvision uses. Both make the same float32 values: checked before timing. "Floor"
is Pillow alone: decoding, and the two resizes without which no tiles are bit-exact. One thread;
medians; all variants take turns."""
our_tiles = partial(
    tile_file,
    tile_size=TILE_SIZE,
    max_tile_count=MAX_TILE_COUNT,
    max_pixel_count=MAX_PIXEL_COUNT,
)


def run(progress: Callable[[str], None]) -> Report:
    """Measures every image on one thread.

    Raises:
        ValueError: the pixel values differ from the reference's, so that times say nothing.
    """
    torch.set_num_threads(1)
    report = Report(
        title="Preprocessing: milliseconds per image",
        compared=COMPARED,
        columns=(
            "image",
            "tiles",
            "floor",
            "our tiles",
            "our pixel values",
            "reference",
            "reference / ours",
        ),
    )
    for format_, width, height in IMAGES:
        name = f"{format_} {width}x{height}"
        progress(name)
        _add_image(report, name, photo(format_, width, height))
    return report


def _add_image(report: Report, name: str, data: bytes) -> None:
    ours, reference = our_pixel_values(data), reference_pixel_values(data)
    if not torch.allclose(ours, reference, rtol=0, atol=1e-6):
        raise ValueError(f"{name}: the pixel values differ from the reference's")
    variants: Mapping[str, Callable[[], object]] = {
        "floor": lambda: decode_and_resize(data),
        "our_tiles": lambda: our_tiles(data),
        "ours": lambda: our_pixel_values(data),
        "reference": lambda: reference_pixel_values(data),
    }
    seconds = measure(variants, REPEAT_COUNT)
    medians = {variant: median_ms(values) for variant, values in seconds.items()}
    ratio = f"{medians['reference'] / medians['ours']:.2f}"
    report.add(name, [str(len(ours)), *(f"{ms:.1f}" for ms in medians.values()), ratio], seconds)


def decode_and_resize(data: bytes) -> None:
    """What no way to these pixels can leave out, as long as Pillow does it."""
    image = decode(data, image_format(data), MAX_PIXEL_COUNT)
    grid = choose_grid(image.width, image.height, MAX_TILE_COUNT, TILE_SIZE)
    image.resize((TILE_SIZE * grid.column_count, TILE_SIZE * grid.row_count))
    if grid.cell_count > 1:
        image.resize((TILE_SIZE, TILE_SIZE))


def our_pixel_values(data: bytes) -> torch.Tensor:
    """Returns [tiles, 3, 448, 448] float32 by the product's own code."""
    return normalise(torch.from_numpy(our_tiles(data).tiles), IMAGENET_MEAN, IMAGENET_STD)
