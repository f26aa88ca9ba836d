"""A checkpoint folder as a whole: whether it is one that is served, told without any weight."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from protos.checkpoint.contents import require_small_files
from protos.checkpoint.kinds import (
    require_served_config,
    require_served_name,
    require_served_tensors,
)
from protos.checkpoint.location import CONFIG_FILE, checkpoints_in, require_folder
from protos.checkpoint.section import CheckpointError, Section
from protos.checkpoint.weight_files import has_weights, stored_tensors

ADAPTER_CONFIG_FILE = "adapter_config.json"


def checked_folder(folder: Path, prefixes: tuple[str, ...] = ("",)) -> dict[str, Path]:
    """Checks all that a folder tells without its weights, and returns each tensor's file by name.

    Args:
        folder: the checkpoint.
        prefixes: how the names of the tensors begin that are needed; the others' files may be
            missing.

    Raises:
        CheckpointError: as `checked_config`; or the weights are missing, damaged, saved twice, or
            of a kind that is not served, or none of them is needed.
    """
    model = checked_config(folder)
    if not has_weights(folder):
        require_served_name(model)
    stored = stored_tensors(folder, prefixes)
    require_served_tensors(model, stored)
    needed = {name: file for name, file in stored.items() if name.startswith(prefixes)}
    if not needed:
        wanted = " and ".join(f"{prefix}*" for prefix in prefixes)
        raise CheckpointError(
            f"{folder}: there are no tensors {wanted}{_others(stored)}; serve a whole checkpoint"
        )
    return needed


def checked_config(folder: Path) -> Section:
    """Checks all of a folder but its weights, which TensorRT's engines do without.

    Returns:
        config.json.

    Raises:
        CheckpointError: there is no such folder, or no config.json in it, or a file stands for
            another one, or the checkpoint is of a kind that is not served.
    """
    require_folder(folder)
    require_small_files(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"there is no file {folder / CONFIG_FILE}{_hint(folder)}")
    model = Section.of_file(folder / CONFIG_FILE)
    require_served_config(model)
    return model


def _others(stored: Iterable[str]) -> str:
    first = next(iter(stored), None)
    return f", but such as {first}" if first else ""


def _hint(folder: Path) -> str:
    """Says what a folder without config.json is."""
    if (folder / ADAPTER_CONFIG_FILE).is_file():
        adapter = Section.of_file(folder / ADAPTER_CONFIG_FILE)
        base = adapter.read("base_model_name_or_path", str, "its model")
        return (
            f"; {ADAPTER_CONFIG_FILE} says that the folder is a LoRA adapter alone: load it with"
            f" peft onto {base}, call merge_and_unload, and serve what save_pretrained writes"
        )
    if checkpoints := list(checkpoints_in(folder)):
        return f"; did you mean {folder / checkpoints[0]}?"
    return ""
