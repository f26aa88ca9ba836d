"""A JSON file that holds an object: configs, indexes and vocabularies are such files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json_object(path: Path, owner: str, error: type[Exception]) -> dict[str, Any]:
    """Reads a file whose whole content is one object.

    Args:
        path: the file.
        owner: what a missing file is missed by, e.g. "the checkpoint".
        error: class of the exceptions.

    Raises:
        error: there is no such file, it is not valid JSON, or it holds something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise error(f"{owner} has no file {path.name} ({path.parent})") from cause
    except ValueError as cause:
        raise error(f"{path} is not valid JSON: {cause}") from cause
    if not isinstance(document, dict):
        raise error(f"{path} does not hold a JSON object")
    return document
