"""The memory that a vision model takes: its weights, and a batch."""

from __future__ import annotations

from protos.checkpoint.tile import SHUFFLE_FACTOR
from vision_service.checkpoint import VisionConfig


def weight_byte_count(config: VisionConfig, itemsize: int) -> int:
    """Returns what the weights take in elements of so many bytes.

    The vectors, of norms, biases and scales, are left out: they are less than a hundredth.
    """
    width, output = config.hidden_size, config.output_size
    layer = 4 * width**2 + 2 * width * config.intermediate_size
    patches = 3 * config.patch_size**2 * width
    positions = (config.patches_per_edge**2 + 1) * width
    projector = width * SHUFFLE_FACTOR**2 * output + output**2
    return itemsize * (config.layer_count * layer + patches + positions + projector)


def batch_byte_count(config: VisionConfig, tile_count: int, itemsize: int) -> int:
    """Returns about what the forward pass of so many tiles takes beside the weights.

    Of the widest point of a layer: the residual and its norm, query, key and value, attention's
    output, and both sides of the MLP's activation. And the pixels: as bytes, in float32, and in
    the elements' type.
    """
    token_count = tile_count * (1 + config.patches_per_edge**2)
    width = 6 * config.hidden_size + 2 * config.intermediate_size
    pixel_count = tile_count * 3 * config.tile_size**2
    return token_count * width * itemsize + pixel_count * (1 + 4 + itemsize)
