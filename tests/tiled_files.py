"""Files tiled in the test's own process, by the steps that a worker takes."""

from __future__ import annotations

from vision_service.pictures.formats import image_format
from vision_service.pictures.transparency import Transparency
from vision_service.tiling import (
    RELEASED_POLICY,
    TiledImage,
    TilePolicy,
    choose_grid,
    cut,
    decode,
)


def tile_file(
    data: bytes,
    *,
    tile_size: int,
    max_tile_count: int,
    max_pixel_count: int,
    transparency: Transparency = "white",
    policy: TilePolicy = RELEASED_POLICY,
) -> TiledImage:
    """Decodes a file and cuts it into tiles.

    Args:
        data: the encoded file.
        tile_size: edge of a tile in pixels.
        max_tile_count: most tiles without the thumbnail; 1 or more.
        max_pixel_count: most pixels of the image.
        transparency: what transparent pixels become; as `colours.to_rgb`.
        policy: the checkpoint's.

    Raises:
        InvalidImageError, ImageTooLargeError: as `decode`.
    """
    image = decode(data, image_format(data), max_pixel_count, transparency)
    grid = choose_grid(image.width, image.height, max_tile_count, tile_size, policy)
    tiles = cut(image, grid, tile_size)
    return TiledImage(tiles, grid, image.width, image.height)
