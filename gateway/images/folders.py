"""Folders as an option: given several times, as a JSON list, or one by its plain path."""

from __future__ import annotations

import json


def split_folders(value: object) -> object:
    """Returns the folders of an option as it comes: a flag given twice comes with a comma."""
    if not isinstance(value, str):
        return value
    return json.loads(value) if value.startswith("[") else value.split(",")
