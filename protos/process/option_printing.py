"""All options of a program as they are in effect, as TOML that --config reads back."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, SecretStr
from pydantic_settings import BaseSettings

from protos.process.option_sources import (
    OUTSIDE_OPTIONS,
    Location,
    Source,
    holds,
    table_of,
)

DEFAULT = "default"


def printed(settings: BaseSettings, sources: Sequence[Source]) -> str:
    """Returns the file: each option with where its value comes from.

    Defaults stand in comments, so that they stay defaults: some follow other options, or the
    machine. So does what is secret, which the file does not have.
    """
    table = table_of(type(settings))
    engine = getattr(settings, "engine", "")
    lines = [f"[{table}]"]
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if name not in OUTSIDE_OPTIONS and not isinstance(value, BaseModel):
            lines.append(_line((name,), value, sources))
    if isinstance(group := getattr(settings, engine, None), BaseModel):
        lines += ["", f"[{table}.{engine}]"]
        lines += [_line((engine, name), value, sources) for name, value in group]
    return "".join(f"{line}\n" for line in lines)


def _line(location: Location, value: object, sources: Sequence[Source]) -> str:
    text, origin = toml(value), _origin(location, sources)
    line = f"{location[-1]} = {text}" if text else f"# {location[-1]}: {_unsaid(value)}"
    mark = "# " if text and origin == DEFAULT else ""
    return f"{mark}{line}  # {origin}"


def _unsaid(value: object) -> str:
    return "none" if value is None else "a secret"


def _origin(location: Location, sources: Sequence[Source]) -> str:
    return next((one.name(location) for one in sources if holds(one.values, location)), DEFAULT)


def toml(value: object) -> str:
    """Returns a value as TOML has it; empty for None, which it has not, and for a secret."""
    match value:
        case None | SecretStr():
            return ""
        case bool():
            return str(value).lower()
        case float() if not math.isfinite(value):
            return str(value)
        case int() | float():
            return repr(value)
        case str() | Path():
            # JSON's strings are TOML's, but for one character that only TOML wants escaped.
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
        case list() | tuple():
            return f"[{', '.join(map(toml, value))}]"
    raise TypeError(f"TOML has no {type(value).__name__}")
