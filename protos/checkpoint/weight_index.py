"""What a checkpoint's index of safetensors files says: the file of each tensor, by its name."""

from __future__ import annotations

import os
from pathlib import Path

from protos.checkpoint.section import Section

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# How the names of stored tensors end that are no weights: buffers that whoever loads a checkpoint
# computes, and what a training library kept for itself.
BUFFER_SUFFIXES = (
    *(".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached"),
    *(".embeddings.position_ids", "._extra_state"),
)


def indexed_names(index: Path) -> dict[str, str]:
    """Returns the name of each tensor's file, which is in the index's folder.

    Raises:
        CheckpointError: the index cannot be read, or has no tensor, or leads out of its folder.
    """
    document = Section.of_file(index)
    weight_map = document.section("weight_map")
    names = {name: weight_map.read(name, str) for name in weight_map.values}
    if not names:
        raise document.error("weight_map", "has no tensor's name; fetch the index again")
    for name, file in names.items():
        if os.path.basename(file) != file or file in ("", ".", ".."):
            raise weight_map.error(
                name, f"is {file!r}; it must be the name of a file beside the index"
            )
    return names
