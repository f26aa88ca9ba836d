"""The seven released sizes: every original tensor accounted for, and the published totals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from llm_service.checkpoint import LLMConfig
from llm_service.engines.torch.kernels.torch_kernels import TorchKernels
from llm_service.engines.torch.weights import destinations, empty_decoder
from llm_service.memory import weight_byte_count
from tests.unit.llm_service.engines.torch.tiny import tensor_shapes

CONFIGS = Path(__file__).parents[4] / "data" / "configs"
# Parameters of the two vision towers, counted from their dimensions by `_tower`.
TOWER_300M, TOWER_6B = 304.0e6, 5.537e9
# Size, ViT width, and the parameters of the whole model in billions, as published.
SIZES = [
    ("1B", 1024, 0.938),
    ("2B", 1024, 2.206),
    ("4B", 1024, 3.713),
    ("8B", 1024, 8.075),
    ("26B", 3200, 25.514),
    ("38B", 3200, 38.388),
    ("78B", 3200, 78.408),
]


@pytest.mark.parametrize("size", [size for size, _, _ in SIZES])
def test_every_tensor_has_its_place(size: str) -> None:
    folder = CONFIGS / f"InternVL2_5-{size}"
    llm = json.loads((folder / "config.json").read_text())["llm_config"]
    decoder = empty_decoder(LLMConfig.from_checkpoint(folder), TorchKernels())
    shapes = {name: destination.shape for name, destination in destinations(decoder).items()}
    assert shapes == tensor_shapes(llm)


@pytest.mark.parametrize("size", [size for size, _, _ in SIZES])
def test_the_memory_that_is_asked_for_is_what_the_weights_take(size: str) -> None:
    config = LLMConfig.from_checkpoint(CONFIGS / f"InternVL2_5-{size}")
    decoder = empty_decoder(config, TorchKernels())
    taken = sum(parameter.nbytes for parameter in decoder.parameters())
    assert weight_byte_count(config, itemsize=4) == pytest.approx(taken, rel=1e-3)


@pytest.mark.parametrize(("size", "vit_width", "billions"), SIZES)
def test_parameters_add_up_to_the_published_total(
    size: str, vit_width: int, billions: float
) -> None:
    config = LLMConfig.from_checkpoint(CONFIGS / f"InternVL2_5-{size}")
    decoder = empty_decoder(config, TorchKernels())
    # Not the parameters: the head has a few rows more, for cuBLAS.
    language = sum(math.prod(destination.shape) for destination in destinations(decoder).values())
    tower = _tower(vit_width)
    assert tower == pytest.approx(TOWER_300M if vit_width == 1024 else TOWER_6B, rel=2e-4)
    total = language + tower + _projector(vit_width, config.hidden_size)
    assert round(total / 1e9, 3) == billions


def _tower(width: int) -> int:
    """Returns the ViT's parameters: 24 layers of LayerNorm, or 45 of RMSNorm with qk-norm."""
    patches = 3 * 14 * 14 * width + width + width + 1025 * width
    layer_count, intermediate = (24, 4096) if width == 1024 else (45, 12800)
    products = math.prod((4, width, width)) + 2 * width * intermediate
    biases = width + intermediate + width  # proj, fc1, fc2
    scales = 2 * width
    # LayerNorm: two weights and two biases, and qkv's bias; RMSNorm: two, and those of q and k.
    norms = 4 * width + 3 * width if width == 1024 else 4 * width
    return patches + layer_count * (products + biases + scales + norms)


def _projector(vit_width: int, hidden: int) -> int:
    joined = 4 * vit_width
    return 2 * joined + joined * hidden + hidden + hidden * hidden + hidden
