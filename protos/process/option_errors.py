"""What is wrong with a program's options, all of it, each named as the user wrote it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from protos.process.option_sources import (
    Location,
    Source,
    holds,
    no_such_option,
    option_paths,
    subcommands,
)

# A value is shown so far; the user knows how it goes on.
MAX_SHOWN_LENGTH = 200
# They say nothing by themselves: another option is wrong.
CONSEQUENCES = ("default_factory_not_called",)


@dataclass(frozen=True)
class Contradiction:
    """What is wrong with options that are right by themselves.

    Attributes:
        options: the paths of those that it names, as "port" or "torch.device".
        sentence: why they are wrong.
        beside: further options that make them so, which the sentence tells.
    """

    options: tuple[str, ...]
    sentence: str
    beside: tuple[str, ...] = ()


class ContradictionsError(ValueError):
    """Options contradict each other; the message has all sentences."""

    def __init__(self, found: Sequence[Contradiction]) -> None:
        super().__init__("; ".join(f"{', '.join(each.options)}: {each.sentence}" for each in found))
        self.found = found


class Findings:
    """What validation has found wrong in the values of some sources.

    Attributes:
        locations: of the options that are wrong by themselves.
        missing: names of options that must be given and are not.
        contradictions: what is wrong with several together.
    """

    def __init__(
        self, cls: type[BaseModel], error: ValidationError, sources: Sequence[Source]
    ) -> None:
        self._cls = cls
        self._sources = sources
        self._details = [one for one in error.errors() if not _is_consequence(cls, one)]
        self.contradictions = [*_contradictions(self._details)]
        own = [one for one in self._details if not isinstance(_cause(one), ContradictionsError)]
        self._own = own
        self.missing = [str(one["loc"][0]) for one in own if one["type"] == "missing"]
        self.locations = [one["loc"] for one in own if one["loc"] and one["type"] != "missing"]

    def touches(self, contradiction: Contradiction) -> bool:
        """Says whether one of its options is wrong by itself, or missing."""
        firsts = {*self.missing, *(location[0] for location in self.locations)}
        involved = (*contradiction.options, *contradiction.beside)
        return any(option.split(".")[0] in firsts for option in involved)

    def sentences(self) -> Iterator[str]:
        """Yields one for each option that is wrong by itself."""
        for details in self._own:
            if details["type"] == "extra_forbidden":
                yield self._unknown(details["loc"])
            else:
                label = self._name(details["loc"])
                yield f"{label}: {self._sentence(details)}" if label else self._sentence(details)

    def sentence(self, contradiction: Contradiction) -> str:
        """Returns one, after the options as the user wrote them, or would."""
        names = (self._name(tuple(option.split("."))) for option in contradiction.options)
        return f"{', '.join(names)}: {contradiction.sentence}"

    def _name(self, location: Location) -> str:
        if not location:
            return ""
        return _source(self._sources, location).name(location)

    def _unknown(self, location: Location) -> str:
        *group, name = location
        beside = (path for path in option_paths(self._cls) if [*path[:-1]] == group)
        return no_such_option(self._name(location), str(name), (str(path[-1]) for path in beside))

    def _sentence(self, details: ErrorDetails) -> str:
        match details["type"]:
            case "missing":
                return "it must be given"
            case "value_error":  # of a validator of ours; pydantic puts a prefix before its message
                return str(_cause(details))
        if is_secret(self._cls, details["loc"]):
            return details["msg"]
        return f"{details['msg']}; it is {_shown(details['input'])}"


def _is_consequence(cls: type[BaseModel], details: ErrorDetails) -> bool:
    """Says whether something else is wrong, such as the word that was to be a subcommand."""
    is_subcommand = details["loc"] in [(name,) for name in subcommands(cls)]
    return details["type"] in CONSEQUENCES or (details["type"] == "missing" and is_subcommand)


def _source(sources: Sequence[Source], location: Location) -> Source:
    """Returns the one that counts; the command line for what none of them has."""
    return next((one for one in sources if holds(one.values, location)), sources[0])


def _cause(details: ErrorDetails) -> object:
    return details.get("ctx", {}).get("error")


def _contradictions(details: Sequence[ErrorDetails]) -> Iterator[Contradiction]:
    for one in details:
        if isinstance(cause := _cause(one), ContradictionsError):
            yield from cause.found


def is_secret(cls: type[BaseModel], location: Location) -> bool:
    """Says whether an option's value is shown to nobody."""
    field = cls.model_fields.get(str(location[0])) if location else None
    return field is not None and SecretStr in (field.annotation, *get_args(field.annotation))


def _shown(value: object) -> str:
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except TypeError:
        text = str(value)
    return text if len(text) <= MAX_SHOWN_LENGTH else f"{text[:MAX_SHOWN_LENGTH]}..."


def repaired(cls: type[BaseModel], values: Mapping[str, Any], findings: Findings) -> dict[str, Any]:
    """Returns values without what is wrong by itself, so that the rest can be compared."""
    rest = dict(values)
    for location in findings.locations:
        rest = _without(rest, location)
    for name in findings.missing:
        rest[name] = Path() if cls.model_fields[name].annotation is Path else ""
    return rest


def _without(values: Mapping[str, Any], location: Location) -> dict[str, Any]:
    first, *rest = location
    within = values.get(str(first))
    if rest and isinstance(within, Mapping):
        return {**values, str(first): _without(within, tuple(rest))}
    return {name: value for name, value in values.items() if name != first}
