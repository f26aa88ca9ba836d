"""Folders as an option: given several times, as a JSON list, or one by its plain path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator
from pydantic_settings import NoDecode

AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]


def _split(value: object) -> object:
    """Returns the folders of an option as it comes: a flag given twice comes with a comma."""
    if not isinstance(value, str):
        return value
    return json.loads(value) if value.startswith("[") else value.split(",")


def _existing(folders: tuple[Path, ...]) -> tuple[Path, ...]:
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder")
    return folders


Folders = Annotated[
    tuple[AbsolutePath, ...], NoDecode, BeforeValidator(_split), AfterValidator(_existing)
]
