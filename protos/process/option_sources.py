"""Where a program's options come from: its command line, its environment, its config file.

Each source has what it gives, as nested dictionaries, and knows how the user wrote an option there.
What cannot be read at all becomes a fault, a sentence, and is left out, so that one look at all
sources finds everything that is wrong in them.
"""

from __future__ import annotations

import difflib
import os
import re
from abc import ABC, abstractmethod
from argparse import (
    Action,
    ArgumentError,
    ArgumentParser,
    Namespace,
    RawDescriptionHelpFormatter,
)
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    CliSubCommand,
    EnvSettingsSource,
    SettingsError,
    TomlConfigSettingsSource,
)

# Where a value stands in nested options: names, and within a list numbers.
Location = tuple[int | str, ...]
# How pydantic-settings marks a field that is a subcommand; it has no public name.
SUBCOMMAND = get_args(CliSubCommand)[1]
# What a config file may hold; a program reads the table named in its variables' prefix.
CONFIG_TABLES = ("serve", "vision", "llm", "gateway")
# What they say is of one run, and is over when the file is read.
OUTSIDE_OPTIONS = ("config", "print_config")
# How like two names are, as difflib counts it, of which one is the other with a slip: GATWAY.
NEAR = 0.93
# What pydantic-settings puts behind the help of an option whose default a function makes.
DEFAULT_FACTORY = re.compile(r" \(default factory: [^)]*\)$")
# It has no exception of its own for a list that is no JSON.
UNREADABLE_LIST = re.compile(r"Parsing error encountered for (?P<option>\S+): (?P<reason>.*)")


class Source(ABC):
    """One of the places that options come from.

    Attributes:
        values: what it gives.
        faults: what cannot be read, a sentence each.
    """

    def __init__(self) -> None:
        self.values: Mapping[str, Any] = {}
        self.faults: list[str] = []

    @abstractmethod
    def name(self, location: Location) -> str:
        """Returns an option as the user has written it here, or would write it."""


def holds(values: object, location: Location) -> bool:
    """Says whether values have something at a location, or a text of which it was to be a part."""
    for step in location:
        if not isinstance(values, Mapping):
            return True
        if step not in values:
            return False
        values = values[step]
    return True


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values of which those above win, option by option."""
    values = dict(below)
    for name, value in above.items():
        under = values.get(name)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            value = merged(under, value)
        values[name] = value
    return values


def table_of(cls: type[BaseSettings]) -> str:
    """Returns the name of a program's table: "llm" for the variables INTERNVL_LLM_*."""
    prefix = cls.model_config.get("env_prefix") or ""
    return prefix.removeprefix("INTERNVL_").rstrip("_").lower()


def no_such_option(label: str, name: str, known: Iterable[str]) -> str:
    """Returns the sentence about an option that is none, with the nearest name that is one's."""
    nearest = difflib.get_close_matches(name, list(known), 1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"{label}: there is no such option{hint}"


def subcommands(cls: type[BaseModel]) -> list[str]:
    """Returns the names of the fields that are subcommands."""
    return [name for name, field in cls.model_fields.items() if SUBCOMMAND in field.metadata]


def option_paths(cls: type[BaseModel], group: Location = ()) -> Iterator[Location]:
    """Yields the names of all options, those of a group behind its name."""
    for name, field in cls.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from option_paths(field.annotation, (*group, name))
        else:
            yield (*group, name)


class Flags(Source):
    """The command line."""

    def __init__(self, cls: type[BaseSettings], words: Sequence[str]) -> None:
        super().__init__()
        self._cls = cls
        self._words = [word.partition("=")[0] for word in words]
        self._unknown: list[str] = []
        self.values = self._read([*words])

    def _read(self, words: list[str]) -> Mapping[str, Any]:
        """Returns what the words say, without those that say nothing."""
        while True:
            try:
                flags = _LenientFlags(
                    self._cls,
                    cli_parse_args=words,
                    parse_args_method=self._parse,
                    formatter_class=_HelpFormatter,
                )
            except (ArgumentError, SettingsError) as error:
                spellings, reason = _unreadable(error)
                written = [each for each in spellings if each in self._words]
                self.faults.append(": ".join([*written[:1], reason]))
                left = [*_without(words, spellings)]
                if left == words:
                    return {}
                words = left
            else:
                self.faults.extend(self._strays())
                return flags()

    def _parse(self, parser: ArgumentParser, words: Sequence[str]) -> Namespace:
        parser.exit_on_error = False
        options, self._unknown = parser.parse_known_args(words)
        return options

    def _strays(self) -> Iterator[str]:
        """Yields a sentence for each option that is none, and each word that belongs to none.

        The word itself may be a secret, one of an option that was not written as it should be.
        """
        known = {self.name(path) for path in option_paths(self._cls)}
        is_value = False
        for word in self._unknown:
            if word.startswith("-"):
                flag = word.partition("=")[0]
                yield no_such_option(flag, flag, known)
            elif not is_value:
                yield "the command line has a word that belongs to no option"
            is_value = word.startswith("-")

    def name(self, location: Location) -> str:
        """Returns --option; of several spellings that which was used."""
        if location and location[0] in subcommands(self._cls):
            location = location[1:]  # a word before the options, not a part of their names
        names, items = _split(location)
        path = ".".join(names)
        shortcut = (self._cls.model_config.get("cli_shortcuts") or {}).get(path, path)
        spellings = [_flag(each) for each in (path, str(shortcut), f"no-{path}")]
        return next(filter(self._words.__contains__, spellings), spellings[0]) + items


class _Lenient:
    """Of a source: a value that should be JSON and is not is told of with all that is wrong."""

    def decode_complex_value(self, field_name: str, field: Any, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)  # type: ignore[misc]
        except ValueError:
            return value


class _LenientFlags(_Lenient, CliSettingsSource[Any]):
    pass


class _HelpFormatter(RawDescriptionHelpFormatter):
    """Shows no names of functions; what a default is that one makes, the help says itself."""

    def _get_help_string(self, action: Action) -> str | None:
        return action.help and DEFAULT_FACTORY.sub("", action.help)


class _LenientVariables(_Lenient, EnvSettingsSource):
    pass


def _unreadable(error: ArgumentError | SettingsError) -> tuple[list[str], str]:
    """Returns the spellings of the option that cannot be read, and why."""
    if isinstance(error, ArgumentError):
        return (error.argument_name or "").split("/"), error.message
    if found := UNREADABLE_LIST.match(str(error)):
        return [_flag(found["option"])], f"not a list: {found['reason']}"
    return [], str(error)


def _without(words: Sequence[str], options: Sequence[str]) -> Iterator[str]:
    """Yields a command line without some options and their values."""
    is_value = False
    for word in words:
        if is_option := word.startswith("-"):
            is_value = word.partition("=")[0] in options
        if not is_value:
            yield word
        elif not is_option:
            is_value = False


def _flag(path: str) -> str:
    return f"--{path.replace('_', '-')}"


def _split(location: Location) -> tuple[list[str], str]:
    """Returns the names of a location, and what follows them within a list, as ".1"."""
    names = [*takewhile(lambda step: isinstance(step, str), location)]
    return [str(name) for name in names], "".join(f".{step}" for step in location[len(names) :])


class Environment(Source):
    """The environment variables with the program's prefix."""

    def __init__(self, cls: type[BaseSettings]) -> None:
        super().__init__()
        self._cls = cls
        self._prefix = cls.model_config.get("env_prefix") or ""
        self._set = {name.upper() for name in os.environ}
        self.values = _LenientVariables(cls)()

    def name(self, location: Location) -> str:
        """Returns PREFIX_OPTION; of a group that is given as JSON the group's."""
        names, items = _split(location)
        while len(names) > 1 and self._variable(names) not in self._set:
            items = f".{names.pop()}{items}"
        return self._variable(names) + items

    def _variable(self, names: Sequence[str]) -> str:
        return f"{self._prefix}{'_'.join(names)}".upper()

    def refuse_unknown(self, other_programs: Sequence[str]) -> None:
        """Adds a fault for each variable that seems to be meant for the program, and is none of it.

        That is what begins as its variables do, and what begins as no program's, but else is one.

        Args:
            other_programs: what stands behind this beginning in other programs' variables.
        """
        paths = [[str(name) for name in path] for path in option_paths(self._cls)]
        known = {self._variable(path) for path in paths}
        # What is none of a group's options is refused by the group.
        groups = {self._variable(path[:1]) for path in paths if len(path) > 1}
        others = (*(f"{group}_" for group in groups), *map(self._prefix.__add__, other_programs))
        programs = tuple(f"INTERNVL_{table.upper()}_" for table in CONFIG_TABLES)
        for name in sorted(self._set - known - groups):
            if name.startswith(self._prefix):
                is_meant = not name.startswith(others)
            else:
                is_meant = not name.startswith(programs) and _is_near(name, known)
            if self._prefix and is_meant:
                self.faults.append(no_such_option(name, name, known))


def _is_near(name: str, known: Iterable[str]) -> bool:
    return bool(difflib.get_close_matches(name, known, 1, NEAR))


class ConfigFile(Source):
    """The program's table in a TOML file."""

    def __init__(self, cls: type[BaseSettings], path: Path | None, option: str) -> None:
        """Reads it.

        Args:
            cls: the program's options.
            path: of the file; None: there is none.
            option: which names it, as the user wrote it.
        """
        super().__init__()
        self._table = table_of(cls)
        self._path = path
        if path is not None:
            try:
                self.values = self._read(cls, path, option)
            except SettingsError as error:
                self.faults.append(str(error))

    def _read(self, cls: type[BaseSettings], path: Path, option: str) -> Mapping[str, Any]:
        if not path.is_file():
            raise SettingsError(f"{option}: there is no file {path}")
        try:
            tables = TomlConfigSettingsSource(cls, path, toml_table_header=()).toml_data
        except (OSError, ValueError) as error:
            raise SettingsError(f"{path}: {error}") from error
        known = ", ".join(f"[{name}]" for name in CONFIG_TABLES)
        self.faults += [
            f"{path}: {name}: not one of the tables of options, {known}"
            for name, table in tables.items()
            if name not in CONFIG_TABLES or not isinstance(table, dict)
        ]
        table = tables.get(self._table)
        options = table if isinstance(table, dict) else {}
        self.faults += [
            f"{self.name((name,))}: it is for the command line or a variable"
            for name in options
            if name in OUTSIDE_OPTIONS
        ]
        return options

    def name(self, location: Location) -> str:
        """Returns the file, the table and the option in it."""
        return f"{self._path}: [{self._table}] {'.'.join(map(str, location))}"
