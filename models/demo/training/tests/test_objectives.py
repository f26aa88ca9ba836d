"""The objectives leave out what has no label, and see picture tokens as squares of patches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from demo_training.dialogues import IGNORED
from demo_training.objectives import cross_entropy, name_shares, token_classes
from llm_service.tokenizer import Tokenizer
from tests.random_checkpoint import write_random_checkpoint


def test_cross_entropy_is_the_mean_over_labelled_places() -> None:
    logits = torch.tensor([[[2.0, 0.0], [0.0, 0.0], [9.0, -9.0]]])
    targets = torch.tensor([[0, 1, IGNORED]])
    expected = torch.nn.functional.cross_entropy(logits[0, :2], targets[0, :2])
    torch.testing.assert_close(cross_entropy(logits, targets), expected)


def test_cross_entropy_without_any_label_is_zero() -> None:
    assert cross_entropy(torch.randn(1, 2, 3), torch.full((1, 2), IGNORED)) == 0


def test_a_token_has_the_class_that_any_of_its_four_patches_has() -> None:
    classes = torch.zeros(1, 4, 4, dtype=torch.long)
    classes[0, 0, 3] = 5  # upper right square
    classes[0, 3, 0] = 7  # lower left square
    assert token_classes(classes).tolist() == [[0, 5, 7, 0]]


def test_a_picture_without_labels_has_none_in_its_tokens() -> None:
    classes = torch.full((1, 2, 2), IGNORED)
    assert token_classes(classes).tolist() == [[IGNORED]]


def test_names_share_a_weight_of_one(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path)
    tokenizer = Tokenizer.from_checkpoint(tmp_path)
    [shares] = name_shares(tokenizer, [("aab", "b")], 300)
    (a,), (b,) = tokenizer.encode("a"), tokenizer.encode("b")
    assert shares[a].item() == pytest.approx(2 / 3 / 2)
    assert shares[b].item() == pytest.approx(1 / 3 / 2 + 1 / 2)
    assert shares.sum().item() == pytest.approx(1)
