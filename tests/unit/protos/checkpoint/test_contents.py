"""Files that stand for others: links into nowhere, and pointers of git-lfs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from protos.checkpoint.contents import require_content, require_small_files
from protos.checkpoint.section import CheckpointError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 1477754\n"


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.model", "tokenizer.json", "vocab.json", "merges.txt"]
)
def test_a_pointer_of_git_lfs(tmp_path: Path, name: str) -> None:
    (tmp_path / "generation_config.json").write_text("{}")
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(CheckpointError) as caught:
        require_small_files(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/{name} is a git-lfs pointer, not the file itself;"
        f" `git lfs pull` in {tmp_path} fetches the files"
    )


def test_files_that_nobody_reads_may_be_pointers(tmp_path: Path) -> None:
    for name in ("README.md", "training.log", "picture.png"):
        (tmp_path / name).write_text(POINTER)
    (tmp_path / "examples.json").mkdir()
    require_small_files(tmp_path)


@pytest.mark.parametrize(
    ("target", "ending"),
    [
        ("../../blobs/0a1b", "give its snapshot, or copy the snapshot with `cp -rL`"),
        ("/store/tokenizer.json", "is a link to /store/tokenizer.json, which is not there"),
    ],
)
def test_a_link_into_nowhere(tmp_path: Path, target: str, ending: str) -> None:
    file = tmp_path / "tokenizer.json"
    file.symlink_to(target)
    with pytest.raises(CheckpointError) as caught:
        require_small_files(tmp_path)
    assert str(caught.value).startswith(f"{file} is a link to {target}, which is not there")
    assert str(caught.value).endswith(ending)


def test_a_folder_in_a_files_place(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is not a file, but a folder"):
        require_content(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", "merges.txt"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{name}: is not a file, but a pipe"):
        require_small_files(tmp_path)
