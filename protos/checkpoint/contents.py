"""Whether a file's content is there: downloads leave links into nowhere, and git-lfs's pointers."""

from __future__ import annotations

import os
from pathlib import Path

from protos.checkpoint.section import CheckpointError, require_file

# How the file begins that git without git-lfs checks out in place of a large one.
POINTER_START = b"version https://git-lfs"
# What a checkpoint's folder has beside the weights: configs, index and tokenizer.
SMALL_FILES = ("*.json", "*.model", "merges.txt")


def require_content(file: Path) -> None:
    """Refuses a file that stands for another one.

    Raises:
        CheckpointError: it is a link whose target is missing, or a pointer of git-lfs, or no file
            at all, or cannot be read.
    """
    if file.is_symlink() and not file.exists():
        raise CheckpointError(_dangling(file))
    try:
        require_file(file)
        with file.open("rb") as opened:
            start = opened.read(len(POINTER_START))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    if start == POINTER_START:
        raise CheckpointError(
            f"{file} is a git-lfs pointer, not the file itself;"
            f" `git lfs pull` in {file.parent} fetches the files"
        )


def require_small_files(folder: Path) -> None:
    """Refuses a folder in which one of the files beside the weights stands for another one."""
    for pattern in SMALL_FILES:
        for file in sorted(folder.glob(pattern)):
            if not file.is_dir():
                require_content(file)


def _dangling(file: Path) -> str:
    target = os.readlink(file)
    sentence = f"{file} is a link to {target}, which is not there"
    if "blobs" not in Path(target).parts:
        return sentence
    return (
        f"{sentence}: the files of a snapshot lie in blobs of the hub's cache; mount the whole"
        " models-- folder and give its snapshot, or copy the snapshot with `cp -rL`"
    )
