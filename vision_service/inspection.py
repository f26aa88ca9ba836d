"""`internvl-vision --check`: whether a checkpoint would be served, and as what, without weights."""

from __future__ import annotations

from functools import partial

from protos.checkpoint.tensor_heads import TensorSummary
from protos.process.check import SHORT_ITEMSIZE, weight_fact
from protos.process.facts import Facts
from protos.process.memory import gib
from vision_service.checkpoint import VisionConfig, vision_tensor_files
from vision_service.engines.torch.engine import matching_model
from vision_service.memory import batch_byte_count, weight_byte_count
from vision_service.settings import Settings


def inspect(settings: Settings) -> Facts:
    """Checks all that the service checks of a checkpoint, and returns what it found.

    Raises:
        CheckpointError: the checkpoint is not one that we serve.
    """
    config = VisionConfig.from_checkpoint(settings.checkpoint)
    files = vision_tensor_files(settings.checkpoint)
    _, tensors = matching_model(settings.checkpoint, config, files)
    return [
        ("model", settings.model_name),
        *_tower_facts(config, tensors),
        (
            "tile",
            f"{config.tile_size} x {config.tile_size} pixels, {config.tokens_per_tile} tokens",
        ),
        ("picture", _picture(config, settings.max_tile_count or config.max_dynamic_patch)),
        *_memory_facts(config, settings.max_batch_tile_count),
    ]


def _tower_facts(config: VisionConfig, tensors: TensorSummary) -> Facts:
    used, layers = config.used_layer_count, config.layer_count
    return [
        (
            "tower",
            f"{layers} layers{f' ({used} of them used)' if used < layers else ''} of"
            f" {config.head_count} heads x {config.hidden_size // config.head_count},"
            f" hidden size {config.hidden_size:,}, {config.norm_type}",
        ),
        ("projector", f"to hidden size {config.output_size:,}, the language model's"),
        ("parameters", f"{tensors.value_count:,}, stored as {' and '.join(tensors.dtypes)}"),
    ]


def _picture(config: VisionConfig, max_tile_count: int) -> str:
    if not config.dynamic_image_size:
        return "one tile"
    thumbnail = ", and a thumbnail beside several" if config.use_thumbnail else ", no thumbnail"
    return f"{config.min_dynamic_patch} to {max_tile_count} tiles{thumbnail}"


def _memory_facts(config: VisionConfig, tile_count: int) -> Facts:
    batch = batch_byte_count(config, tile_count, SHORT_ITEMSIZE)
    return [
        weight_fact(partial(weight_byte_count, config)),
        ("one batch", f"about {gib(batch)} in 16 bits, of {tile_count} tiles"),
    ]
