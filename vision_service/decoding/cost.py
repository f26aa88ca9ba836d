"""What decoding and tiling an image will take, told from its header."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vision_service.bands import MAX_BAND_PIXEL_COUNT, size_between
from vision_service.decoding.headers import Header
from vision_service.tiling import RELEASED_POLICY, TilePolicy, choose_grid

# Bytes a pixel that decoding takes at its peak: what Pillow makes of the file, and its RGB copy or
# the one that is turned upright, four bytes a pixel each. libwebp holds two canvases, and one more
# that it hands over.
DECODING_BYTE_COUNT = {
    "JPEG": 8,
    "PNG": 8,
    "BMP": 8,
    "GIF": 8,
    "WEBP": 16,
    "TIFF": 12,
    "AVIF": 20,
    "HEIC": 20,
}
RGB_BYTE_COUNT = 4
# What a process takes besides: a codec's tables, Pillow's blocks, the allocator's rounding.
SPARE_BYTE_COUNT = 32 * 1024 * 1024
# CPU time of what does not grow with the pixels, such as metadata, and of a page fault too many.
SPARE_SECONDS = 1.0
# From so many pixels on an image may not have the last half of the workers.
LARGE_PIXEL_COUNT = 16_000_000


@dataclass(frozen=True)
class Cost:
    """What a worker may use for an image, and what it counts for while it waits.

    Attributes:
        memory_byte_count: of the worker's own memory, beside the tiles.
        cpu_seconds: of one core.
        is_large: whether it keeps a worker for longer than others should wait.
    """

    memory_byte_count: int
    cpu_seconds: float
    is_large: bool


@dataclass(frozen=True)
class CostModel:
    """What an image may cost.

    Attributes:
        tile_size: edge of a tile, in pixels.
        max_pixel_count: of an image.
        max_decode_seconds: CPU time for an image of max_pixel_count.
        policy: the checkpoint's.
        thread_count: the most that resize an image.
    """

    tile_size: int
    max_pixel_count: int
    max_decode_seconds: float
    policy: TilePolicy = RELEASED_POLICY
    thread_count: int = 1

    def cost(self, header: Header, file_byte_count: int, max_tile_count: int) -> Cost:
        """Returns the cost of an image of at most max_pixel_count.

        Args:
            header: the file's.
            file_byte_count: of the file, of which a decoder may have a copy of its own.
            max_tile_count: most tiles without the thumbnail.
        """
        pixel_count = header.width * header.height
        decoding = DECODING_BYTE_COUNT[header.format] * pixel_count
        # A progressive JPEG's coefficients and its pixels are in memory together, not the RGB copy.
        scans = RGB_BYTE_COUNT * pixel_count + header.coefficient_byte_count
        tiling = RGB_BYTE_COUNT * pixel_count + self._resizing_byte_count(header, max_tile_count)
        share = pixel_count / self.max_pixel_count
        return Cost(
            max(decoding, scans, tiling) + 2 * file_byte_count + SPARE_BYTE_COUNT,
            SPARE_SECONDS + self.max_decode_seconds * share,
            pixel_count >= LARGE_PIXEL_COUNT,
        )

    def _resizing_byte_count(self, header: Header, max_tile_count: int) -> int:
        """Returns the larger of both ways to turn the image, of which EXIF may ask for either."""
        sizes = [(header.width, header.height), (header.height, header.width)]
        return max(self._resized_byte_count(*size, max_tile_count) for size in sizes)

    def _resized_byte_count(self, width: int, height: int, max_tile_count: int) -> int:
        """Returns what `bands.resize_into` holds beside the image.

        That is the picture between both passes, for the grid and for the thumbnail. In the first
        pass each thread has a band of the image, and what it becomes. In the second one it has a
        band of that picture, its part of the result, and twice that part's bytes.
        """
        grid = choose_grid(width, height, max_tile_count, self.tile_size, self.policy)
        columns, rows = grid.column_count * self.tile_size, grid.row_count * self.tile_size
        sizes = ((columns, rows), (self.tile_size, self.tile_size))
        between = sum(math.prod(size_between((width, height), size)) for size in sizes)
        bands = min(
            2 * self.thread_count * MAX_BAND_PIXEL_COUNT, len(sizes) * width * height + between
        )
        results = sum(map(math.prod, sizes)) * (RGB_BYTE_COUNT + 2 * 3)
        return RGB_BYTE_COUNT * between + max(
            RGB_BYTE_COUNT * bands, RGB_BYTE_COUNT * between + results
        )
