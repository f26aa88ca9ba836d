"""Folders below which images may be read, as an option has them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator
from pydantic_settings import NoDecode

from protos.process.settings import listed

AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]


def _named(folder: object) -> object:
    if folder == "":  # which a Path takes for the working directory
        raise ValueError("the name of a folder is empty")
    return folder


def _existing(folders: tuple[Path, ...]) -> tuple[Path, ...]:
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder")
    return folders


Folders = Annotated[
    tuple[Annotated[AbsolutePath, BeforeValidator(_named)], ...],
    NoDecode,
    BeforeValidator(listed),
    AfterValidator(_existing),
]
