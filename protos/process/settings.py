"""A program's options: each one is a flag, an environment variable and a line of help.

The programs that serve also take them from a TOML file, where each has a table of its own.
"""

from __future__ import annotations

import ipaddress
import json
import os
import sys
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliSubCommand,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from protos.checkpoint.location import CheckpointFolder
from protos.process.logs import DEFAULT_LINES_PER_SECOND, LogFormat, LogLevel
from protos.signature import EmbeddingKey

SettingsType = TypeVar("SettingsType", bound=BaseSettings)
# How pydantic-settings marks a field that is a subcommand; it has no public name.
SUBCOMMAND = get_args(CliSubCommand)[1]
# What a config file may hold; a program reads the table named in its variables' prefix.
CONFIG_TABLES = ("serve", "vision", "llm", "gateway")

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
# More than any machine's cores; PyTorch takes memory for each thread.
LARGEST_THREAD_COUNT = 1024


MAX_MODEL_NAME_LENGTH = 256


def _listed(names: object) -> object:
    """Reads what stands in a variable or on the command line: names, or a JSON list of them."""
    if not isinstance(names, str):
        return names
    if not names.startswith("["):
        return names.split(",") if names else ()
    try:
        return json.loads(names)
    except ValueError as error:
        raise ValueError(f"{names} is not a JSON list of names") from error


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not 1 <= len(name) <= MAX_MODEL_NAME_LENGTH or "," in name:
            raise ValueError(
                f"{name!r} cannot be a model's name, which has 1 to {MAX_MODEL_NAME_LENGTH}"
                " characters and no comma"
            )
    return tuple(dict.fromkeys(names))


# Repeated on the command line they arrive as one text, with commas between them.
ModelNames = Annotated[
    tuple[str, ...], NoDecode, BeforeValidator(_listed), AfterValidator(_distinct)
]


@lru_cache  # the gateway asks it of each request's client
def is_loopback(host: str) -> bool:
    """Says whether what listens on this address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


OTLPProtocol = Literal["grpc", "http/protobuf"]
# OpenTelemetry's own variable, beside which its others are read as they are.
OTLP_PROTOCOL_VARIABLE = "OTEL_EXPORTER_OTLP_PROTOCOL"


def otlp_protocol() -> OTLPProtocol:
    """Returns how a collector is spoken to, as the environment has it.

    Raises:
        ValueError: it has something else.
    """
    protocol = os.environ.get(OTLP_PROTOCOL_VARIABLE, "grpc")
    for known in get_args(OTLPProtocol):
        if protocol == known:
            return cast(OTLPProtocol, known)
    raise ValueError(f"{OTLP_PROTOCOL_VARIABLE} is {protocol!r}; known: grpc, http/protobuf")


def _usable_collector(endpoint: str) -> str:
    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError("a collector's URL begins with http:// or https:// and a host")
    otlp_protocol()
    try:
        version("opentelemetry-exporter-otlp")  # which requires the SDK
    except PackageNotFoundError as error:
        raise ValueError(
            "OpenTelemetry is not installed; it is with the extra otel:"
            " pip install 'internvl-serving[otel]'"
        ) from error
    return endpoint


def _is_on_loopback(options: dict[str, Any]) -> bool:
    return is_loopback(options.get("host", ""))


def _readable_key(path: Path) -> Path:
    EmbeddingKey.read(path)
    return path.absolute()


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
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Port of `host` on which Prometheus finds metrics, at /metrics; 0 takes a free one and logs
    it. Default: none are served."""
    drain_seconds: float = Field(default=30.0, ge=0)
    """On SIGTERM, how long calls in flight may still run."""
    log_level: LogLevel = "info"
    """Least severe event that is logged."""
    log_format: LogFormat = "json"
    """How events are written: json for machines, console for people."""
    log_lines_per_second: float = Field(default=DEFAULT_LINES_PER_SECOND, gt=0)
    """Above so many info lines of requests a second, those of some requests are left out, the same
    requests in each process. Warnings, errors and requests of 10 s and more are always logged; the
    next line has left_out_count."""
    otlp_endpoint: Annotated[str, AfterValidator(_usable_collector)] | None = None
    """URL of an OpenTelemetry collector that gets traces, and from the gateway histograms, e.g.
    http://localhost:4317; needs the extra otel. The rest is told by OpenTelemetry's own variables,
    as OTEL_TRACES_SAMPLER. Default: none is made."""
    config: Path | None = None
    """TOML file of options. A program reads its own table, [vision], [llm], [gateway] or [serve],
    so that one file may serve all; names are written as here, with _ for -. The command line
    and the environment go before the file."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Adds the file to where options come from; it gives way to all others."""
        return init_settings, env_settings, _ConfigFileSource(settings_cls)

    @model_validator(mode="wrap")
    @classmethod
    def _name_the_file(
        cls, options: dict[str, Any], handler: ModelWrapValidatorHandler[ServingSettings]
    ) -> ServingSettings:
        try:
            return handler(options)
        except ValidationError as error:
            if not (path := options.get("config")):
                raise
            raise SettingsError("\n".join(_sentences(cls, error, Path(path)))) from error


class _ConfigFileSource(InitSettingsSource):
    """The options in the file that `config` names, as the sources before this one have it."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls, {})

    def __call__(self) -> dict[str, Any]:
        path = self.current_state.get("config")
        return _read_table(self.settings_cls, Path(path)) if path else {}


def _read_table(cls: type[BaseSettings], path: Path) -> dict[str, Any]:
    """Returns a program's table of a config file; empty if it has none.

    Raises:
        SettingsError: there is no such file, or it is not TOML, or not made of our tables.
    """
    if not path.is_file():
        raise SettingsError(f"--config: there is no file {path}")
    try:
        tables = TomlConfigSettingsSource(cls, path, toml_table_header=()).toml_data
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: {error}") from error
    for name, table in tables.items():
        if name not in CONFIG_TABLES or not isinstance(table, dict):
            known = ", ".join(f"[{name}]" for name in CONFIG_TABLES)
            raise SettingsError(f"{path}: {name}: not one of the tables of options, {known}")
    return dict(tables.get(_table(cls), {}))


def _table(cls: type[BaseSettings]) -> str:
    """Returns the name of a program's table: "llm" for the variables INTERNVL_LLM_*."""
    return cls.model_config.get("env_prefix", "").removeprefix("INTERNVL_").rstrip("_").lower()


# The options of the engine torch that people type without its name.
TORCH_SHORTCUTS: dict[str, str | list[str]] = {"torch.device": "device", "torch.dtype": "dtype"}


class EngineOptions(BaseModel):
    """The options of one engine: a group of flags `--ENGINE.OPTION` of an EngineSettings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class GrpcSettings(ServingSettings):
    """The options that processes with a gRPC service share."""

    drain_notice_seconds: float = Field(default=2.0, ge=0)
    """On SIGTERM, how long calls are still taken after the health says NOT_SERVING, so that who
    watches it goes elsewhere before any is refused; no time passes while nobody watches."""
    connection_age_seconds: float = Field(default=5.0, ge=1, le=86_400)
    """How long a connection takes new calls, give or take a tenth; those on it go on to their end.
    A client then looks the service's name up again: so soon a gateway knows of a new replica."""


class EngineSettings(GrpcSettings):
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
    embedding_key_file: Annotated[Path, AfterValidator(_readable_key)] | None = None
    """File of at least 32 random bytes, the same for all vision and LLM services: with it a vision
    service signs the embeddings that it makes, and an LLM service takes no others. Default: none
    are signed, and whoever reaches an LLM service can send it rows for any image."""
    shared_memory_folder: Path | None = None
    """Folder in memory that vision and LLM services of one host share: embeddings go from one to
    the other through a file there, and only where it lies goes through the gateway. Services that
    do not see the same folder, or run as other users, send the embeddings themselves. Default: one
    of the user's own in /dev/shm, on Linux; two containers need a volume."""
    reflection: bool = Field(default_factory=_is_on_loopback)
    """Whether gRPC clients may ask what the server's services look like (server reflection);
    default: only where `host` is a loopback address."""

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


class CheckOption(Options):
    """The option of a program that checks a checkpoint in place of serving it."""

    check: CheckpointFolder | None = None
    """Check this checkpoint in place of serving one, which takes no weights into memory and needs
    no --checkpoint: say what it is and how much memory it takes, or why it is not served (exit
    status 1), and end."""

    @model_validator(mode="before")
    @classmethod
    def _mean_this_checkpoint(cls, options: dict[str, Any]) -> dict[str, Any]:
        check = options.get("check")
        return options if check is None else {**options, "checkpoint": check}


def read_settings(cls: type[SettingsType]) -> SettingsType:
    """Reads a process's options from its command line, its environment and its config file.

    A wrong or missing option ends the process with status 2 and a line for each.
    """
    try:
        return CliApp.run(cls)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
    except ValidationError as error:
        sys.stderr.write("".join(f"{line}\n" for line in _sentences(cls, error)))
    sys.exit(2)


def _sentences(
    cls: type[BaseSettings], error: ValidationError, file: Path | None = None
) -> list[str]:
    """Returns a sentence for each wrong option, after its name as the user wrote it."""
    table = _read_table(cls, file) if file else {}
    sentences = []
    for details in error.errors():
        if details["type"] == "default_factory_not_called":
            continue  # another option is wrong
        location = details["loc"]
        if location and _holds(table, location, details["input"]):
            option = f"{file}: [{_table(cls)}] {'.'.join(map(str, location))}: "
        else:
            option = _option(cls, location)
        sentences.append(option + _sentence(details))
    return sentences


def _sentence(details: ErrorDetails) -> str:
    match details["type"]:
        case "value_error":  # of a validator of ours; pydantic's message puts a prefix before it
            return str(details["ctx"]["error"])
        case "extra_forbidden":
            return "there is no such option"
        case _:
            return details["msg"]


def _holds(table: Mapping[str, Any], location: tuple[int | str, ...], value: object) -> bool:
    """Says whether a table has this value in this place."""
    found: Any = table
    for name in location:
        if isinstance(found, Mapping) and name in found:
            found = found[str(name)]
        elif isinstance(found, list) and isinstance(name, int):
            found = found[name]
        else:
            return False
    return bool(found == value)


def _option(cls: type[BaseSettings], location: tuple[int | str, ...]) -> str:
    """Returns "--option: " as the user types it; empty for what is wrong with several together."""
    subcommands = [name for name, field in cls.model_fields.items() if SUBCOMMAND in field.metadata]
    if location and location[0] in subcommands:
        location = location[1:]  # a word before the options, not a part of their names
    return f"--{'.'.join(map(str, location)).replace('_', '-')}: " if location else ""
