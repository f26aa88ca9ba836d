"""Names of tensors, stored against described: a sentence of bounded length."""

from __future__ import annotations

from pathlib import Path

import pytest

from protos.checkpoint.section import CheckpointError
from protos.checkpoint.tensor_names import require_names

FOLDER = Path("/models/Tiny")


@pytest.mark.parametrize(
    ("stored", "described", "sentence"),
    [
        ("ab", "abc", "lacks the tensor c"),
        ("a", "abcd", "lacks 3 tensors, among them b, c"),
        ("abc", "ab", "has the unexpected tensor c"),
        ("ax", "ab", "lacks the tensor b, and it has the unexpected tensor x"),
    ],
)
def test_what_differs_is_counted_and_named(stored: str, described: str, sentence: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        require_names(FOLDER, list(stored), list(described))
    assert str(caught.value) == f"/models/Tiny: the checkpoint {sentence}"


def test_the_same_names_in_any_order_pass() -> None:
    require_names(FOLDER, ["a", "b"], ["b", "a"])


def test_the_sentence_does_not_grow_with_the_checkpoint() -> None:
    names = [f"vision_model.encoder.layers.{index}.attn.qkv.weight" for index in range(2000)]
    with pytest.raises(CheckpointError) as caught:
        require_names(FOLDER, [f"model.{name}" for name in names], names)
    assert len(str(caught.value)) < 400
