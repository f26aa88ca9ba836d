"""The memory that a vision model takes: its weights."""

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
