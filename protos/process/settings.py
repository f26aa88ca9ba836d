"""A program's options: each one is a flag, an environment variable and a line of help."""

from __future__ import annotations

import sys
from typing import TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliSubCommand,
    SettingsConfigDict,
    SettingsError,
)

from protos.process.logs import LogFormat, LogLevel

SettingsType = TypeVar("SettingsType", bound=BaseSettings)
# How pydantic-settings marks a field that is a subcommand; it has no public name.
SUBCOMMAND = get_args(CliSubCommand)[1]

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


class Options(BaseSettings):
    """A program's options: each field is a flag, an environment variable and a line of help.

    A program's own class adds `env_prefix` and `cli_prog_name`.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        use_attribute_docstrings=True,
        extra="forbid",
    )


class ServingSettings(Options):
    """The options that all three processes share; each one's Settings adds its own."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all of the machine's."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port to listen on; 0 takes a free one and logs it."""
    drain_seconds: float = Field(default=30.0, ge=0)
    """On SIGTERM, how long calls in flight may still run."""
    log_level: LogLevel = "info"
    """Least severe event that is logged."""
    log_format: LogFormat = "json"
    """How events are written: json for machines, console for people."""


class EngineOptions(BaseModel):
    """The options of one engine: a group of flags `--ENGINE.OPTION` of an EngineSettings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class EngineSettings(ServingSettings):
    """Options of a service that has several engines, each with a group of options of its own.

    A subclass lists its engines' names as a Literal, and has a field of EngineOptions for each
    that has options, by the engine's name.
    """

    # INTERNVL_LLM_TORCH_DEVICE is --torch.device: the group's name, and the rest as it is.
    model_config = SettingsConfigDict(
        env_nested_delimiter="_", env_nested_max_split=1, cli_avoid_json=True
    )

    engine: str
    """What runs the model."""

    @model_validator(mode="after")
    def _refuse_foreign_options(self) -> EngineSettings:
        for name in type(self).model_fields:
            group = getattr(self, name)
            if name != self.engine and isinstance(group, EngineOptions) and group.model_fields_set:
                option = _option(type(self), (name, min(group.model_fields_set)))
                raise ValueError(
                    f"{option}an option of the engine {name}, but the engine is {self.engine}"
                )
        return self


def read_settings(cls: type[SettingsType]) -> SettingsType:
    """Reads a process's options from its command line and its environment.

    A wrong or missing option ends the process with status 2 and a line for each.
    """
    try:
        return CliApp.run(cls)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
    except ValidationError as error:
        for details in error.errors():
            sys.stderr.write(f"{_option(cls, details['loc'])}{details['msg']}\n")
    sys.exit(2)


def _option(cls: type[BaseSettings], location: tuple[int | str, ...]) -> str:
    """Returns "--option: " as the user types it; empty for what is wrong with several together."""
    subcommands = [name for name, field in cls.model_fields.items() if SUBCOMMAND in field.metadata]
    if location and location[0] in subcommands:
        location = location[1:]  # a word before the options, not a part of their names
    return f"--{'.'.join(map(str, location)).replace('_', '-')}: " if location else ""
