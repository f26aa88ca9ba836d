"""A tiny demo model with random weights, and samples made by hand, for the tests of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from demo_training.export import TINY_SIZE, write_description, write_weights
from demo_training.network import DemoModel
from demo_training.samples import Picture, Sample, Turn
from llm_service.checkpoint import LLMConfig
from tests.random_checkpoint import write_random_checkpoint
from vision_service.checkpoint import VisionConfig

# Large enough for random weights to give answers that differ between prompts.
WEIGHT_SCALE = 6.0


def write_tiny_checkpoint(folder: Path) -> DemoModel:
    """Writes a random checkpoint with a byte-level tokenizer; returns the same model, in float32.

    Its weights are those of the files: rounded to bfloat16.
    """
    write_random_checkpoint(folder / "tokenizer")
    checkpoint = folder / "checkpoint"
    write_description(checkpoint, TINY_SIZE, folder / "tokenizer")
    torch.manual_seed(0)
    llm = LLMConfig.from_checkpoint(checkpoint)
    model = DemoModel(VisionConfig.from_checkpoint(checkpoint), llm)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = WEIGHT_SCALE if parameter.ndim > 1 else 1.0
            parameter.copy_((scale * parameter).to(torch.bfloat16))
    write_weights(checkpoint, model.state_dict())
    return model


def picture(seed: int, height: int = 448, width: int = 448) -> Picture:
    """Returns noise, without dense labels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Picture(pixels, None, None)


def turn(question: str, answer: str) -> Turn:
    """Returns a turn of a made-up task."""
    return Turn(question, answer, "task", "en", "word")


def samples() -> list[Sample]:
    """Returns samples with one picture, two, a large one and none; with one turn and several."""
    two_turns = (turn("<image>\nleft?", "a fox"), turn("右边呢？", "一只猫"))
    pair = "Image-1: <image>\nImage-2: <image>\nsame?"
    return [
        Sample((picture(1),), (two_turns, (turn("<image>\nhow many?", "2"),)), None),
        Sample((picture(2), picture(3)), ((turn(pair, "no"),), (turn(f"{pair}!", "yes"),)), "Hi."),
        Sample((picture(4, 900, 448),), ((turn("<image>\nread", "AB"),),), None),
        Sample((), ((turn("hello", "hi"),), (turn("who?", "me"),)), None),
        # Asked before and after the picture: two prefixes.
        Sample(
            (picture(5),), ((turn("what? <image>", "x"),), (turn("<image>\nwhat?", "y"),)), None
        ),
    ]
