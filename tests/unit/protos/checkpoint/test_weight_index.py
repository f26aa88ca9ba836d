"""The index of the weights: names of files beside it, and of nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from protos.checkpoint.fingerprint import CheckpointFingerprint
from protos.checkpoint.section import CheckpointError
from protos.checkpoint.weight_files import stored_tensors
from protos.checkpoint.weight_index import INDEX_FILE, indexed_names


def write(folder: Path, file: str) -> Path:
    index = folder / INDEX_FILE
    index.write_text(json.dumps({"weight_map": {"language_model.a": file}}))
    return index


def test_names_beside_the_index(tmp_path: Path) -> None:
    index = write(tmp_path, "model-1..2.safetensors")
    assert indexed_names(index) == {"language_model.a": "model-1..2.safetensors"}


@pytest.mark.parametrize(
    "file", ["/etc/passwd", "../b/model.safetensors", "a/../../b", "a/b", "a/", "..", ".", ""]
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, file: str) -> None:
    index = write(tmp_path, file)
    (tmp_path / "config.json").write_text("{}")
    sentence = f"{index}: weight_map.language_model.a is {file!r}; it must be the name of a file"
    for read in (stored_tensors, CheckpointFingerprint.from_checkpoint):
        with pytest.raises(CheckpointError) as caught:
            read(tmp_path)
        assert str(caught.value).startswith(sentence)
