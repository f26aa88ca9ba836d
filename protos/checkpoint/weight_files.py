"""A checkpoint's safetensors files, and in which of them each tensor is stored."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

from protos.checkpoint.contents import require_content
from protos.checkpoint.section import CheckpointError
from protos.checkpoint.weight_index import (
    BUFFER_SUFFIXES,
    INDEX_FILE,
    SINGLE_FILE,
    indexed_names,
)

ADAPTER_FILE = "adapter_model.safetensors"
SHARDS = "*-of-*.safetensors"
# What other programs leave, and what it is.
OTHER_FORMATS = {
    "*.gguf": "is a model of llama.cpp, mostly quantised; serve the original",
    "*.onnx": "is an exported graph; serve the checkpoint that it is from",
    "global_step*": (
        "is DeepSpeed's state of a training; `python zero_to_fp32.py . merged --safe_serialization`"
        " in that folder writes its weights, to be put beside config.json"
    ),
    "pytorch_model_fsdp*": (
        "is FSDP's state of a training; `accelerate merge-weights` writes its weights, to be put"
        " beside config.json"
    ),
}
PICKLES = ("*model*.bin", "*model*.pth", "*model*.pt")


def weight_files(folder: Path, prefixes: tuple[str, ...] = ("",)) -> list[Path]:
    """Returns the files with the weights: one, or those of the index.

    Args:
        folder: the checkpoint.
        prefixes: how the names of the needed tensors begin; a file without any may be missing.

    Raises:
        CheckpointError: there are none that we read, or two saves side by side, or the index is
            damaged, or a file is missing or stands for another one.
    """
    has_index = (folder / INDEX_FILE).is_file()
    files = _indexed_files(folder, prefixes) if has_index else [folder / SINGLE_FILE]
    if not has_index and not os.path.lexists(files[0]):
        raise CheckpointError(f"the checkpoint has no file {SINGLE_FILE} ({folder}){_hint(folder)}")
    for file in files:
        require_content(file)
    return files


def has_weights(folder: Path) -> bool:
    """Says whether there is any safetensors file, of whatever name."""
    return next(folder.glob("*.safetensors"), None) is not None


def stored_tensors(folder: Path, prefixes: tuple[str, ...] = ("",)) -> dict[str, Path]:
    """Returns in which file each tensor is stored, from the headers of all `weight_files`.

    Raises:
        CheckpointError: as `weight_files`; or a file is damaged, or a tensor is in two of them.
    """
    stored: dict[str, Path] = {}
    for file in weight_files(folder, prefixes):
        for name in _names(file):
            if name in stored:
                raise CheckpointError(
                    f"{folder}: tensor {name} is stored twice, in {stored[name].name} and in"
                    f" {file.name}; one of the two is of another save: fetch the files again"
                )
            stored[name] = file
    return stored


def _names(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="np") as tensors:
            return [name for name in tensors.keys() if not name.endswith(BUFFER_SUFFIXES)]  # noqa: SIM118 - a safetensors file is no dict
    except (OSError, SafetensorError) as error:
        byte_count = file.stat().st_size
        raise CheckpointError(
            f"{file} is damaged, or not whole ({byte_count} bytes): {error}; fetch it again"
        ) from error


def _indexed_files(folder: Path, prefixes: tuple[str, ...]) -> list[Path]:
    index, single = folder / INDEX_FILE, folder / SINGLE_FILE
    file_names = indexed_names(index)
    files = [folder / name for name in sorted(set(file_names.values()))]
    missing = {file for file in files if not os.path.lexists(file)}
    if single not in files and os.path.lexists(single):
        is_stale = len(missing) == len(files)
        raise CheckpointError(_two_saves(index, single, files[0], is_stale))
    needed = {folder / file for name, file in file_names.items() if name.startswith(prefixes)}
    if lacking := sorted(needed & missing):
        raise CheckpointError(
            f"the checkpoint has no file {lacking[0].name} ({folder}), which {INDEX_FILE} names"
            f" (missing: {len(missing)} of {len(files)} files); fetch the checkpoint again"
        )
    # Of a cache, a shard that is not there may be a link to what was never fetched.
    return [file for file in files if file in needed or os.path.isfile(file)]


def _two_saves(index: Path, single: Path, shard: Path, is_stale: bool) -> str:
    if is_stale:
        return (
            f"{index} names {shard.name}, which is not there, but {single.name} is: the index is"
            " of an older save; remove it"
        )
    return (
        f"{single.parent} has two saves, {single.name} and what {index.name} names"
        f" ({shard.name} ...): remove the index to serve {single.name}, or {single.name} to"
        " serve the others"
    )


def _hint(folder: Path) -> str:
    """Says what a folder has in place of safetensors files, and what to do with it."""
    if (folder / ADAPTER_FILE).is_file():
        return f"; {ADAPTER_FILE} is a LoRA adapter alone: merge it into its model, and serve that"
    if shards := sorted(folder.glob(SHARDS)):
        return (
            f", and its shards, such as {shards[0].name}, are without {INDEX_FILE}: fetch that file"
            " from where the shards are from"
        )
    if others := sorted(folder.glob("*.safetensors")):
        return (
            f", but {others[0].name} is there: if that holds the whole model, name it {SINGLE_FILE}"
        )
    pickles = sorted(file for pattern in PICKLES for file in folder.glob(pattern))
    if pickles:
        return _pickle_hint(pickles[0])
    found = ((file, told) for each, told in OTHER_FORMATS.items() for file in folder.glob(each))
    return next((f"; {file.name} {told}" for file, told in found), "")


def _pickle_hint(file: Path) -> str:
    return (
        f"; {file.name} is a pickle, which could run code, so that only safetensors are read: where"
        " you trust it, load it with transformers, call save_pretrained of the model, and serve"
        " what that writes"
    )
