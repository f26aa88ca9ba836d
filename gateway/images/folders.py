"""Folders below which images may be read, as an option has them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator
from pydantic_settings import NoDecode

from protos.process.settings import listed


def _named(folder: object) -> object:
    if folder == "":  # which a Path takes for the working directory
        raise ValueError("the name of a folder is empty")
    return folder


Folders = Annotated[
    tuple[Annotated[Path, BeforeValidator(_named)], ...], NoDecode, BeforeValidator(listed)
]
