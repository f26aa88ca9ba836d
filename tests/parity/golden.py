"""Golden data: what a folder of reference results holds, and how to read it.

The layout is that of tests/data/golden (its README says what each file is); any number of
checkpoint folders, and any names of images. What a folder lacks is skipped by name.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file


def checkpoint_dirs(golden_dir: Path) -> list[Path]:
    """Returns the folders that hold a checkpoint, i.e. a config.json, sorted by name."""
    return sorted(path.parent for path in golden_dir.glob("*/config.json"))


def read_json(path: Path) -> Any:
    """Returns a JSON file's value; skips the test when the folder lacks the file."""
    return json.loads(existing(path).read_text(encoding="utf-8"))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Returns a safetensors file's tensors; skips the test when the folder lacks the file."""
    return load_file(existing(path))


def existing(path: Path) -> Path:
    """Returns the path; skips the test when there is no such file."""
    if not path.is_file():
        pytest.skip(f"the golden data has no {path.parent.name}/{path.name}")
    return path


def need_tokenizer(checkpoint_dir: Path) -> None:
    """Skips the test when the checkpoint has none of the tokenizer's forms."""
    forms = ("tokenizer.json", "vocab.json", "tokenizer.model")
    if not any((checkpoint_dir / form).is_file() for form in forms):
        pytest.skip(f"the golden data has no tokenizer in {checkpoint_dir.name}")


def need_weights(checkpoint_dir: Path) -> None:
    """Skips the test when the checkpoint lacks one of its weight files."""
    if not list(checkpoint_dir.glob("*.safetensors.index.json")):
        existing(checkpoint_dir / "model.safetensors")
    for path in checkpoint_dir.glob("*.safetensors.index.json"):
        for name in set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()):
            existing(checkpoint_dir / name)


def tensors_named(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Returns the tensors called `prefix.NAME`, by NAME; skips the test when there are none."""
    found = {
        name.removeprefix(f"{prefix}."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{prefix}.")
    }
    if not found:
        pytest.skip(f"the golden data has no tensor {prefix}.*")
    return found


def images_named(
    golden_dir: Path, tensors: dict[str, torch.Tensor], prefix: str
) -> list[tuple[bytes, torch.Tensor]]:
    """Returns the image files of NAME with the tensors `prefix.NAME`; skips when none is there."""
    found = [
        (path.read_bytes(), tensor)
        for name, tensor in tensors_named(tensors, prefix).items()
        for path in (golden_dir / "images").glob(f"{glob.escape(name)}.*")
    ]
    if not found:
        pytest.skip(f"the golden data has no images for {prefix}.*")
    return found


def decode_run_lengths(runs: Sequence[int | Sequence[int]]) -> list[int]:
    """Returns the ids that a run-length list stands for: an item is an id or [id, count]."""
    ids: list[int] = []
    for run in runs:
        ids.extend([run] if isinstance(run, int) else [run[0]] * run[1])
    return ids
