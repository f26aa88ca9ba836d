"""A program's options: each one is a flag, an environment variable and a line of help.

The programs that serve also take them from a TOML file, where each has a table of its own.
"""

from __future__ import annotations

import ipaddress
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from typing_extensions import Self

from protos.checkpoint.location import CheckpointFolder, require_folder
from protos.checkpoint.section import CheckpointError
from protos.process.logs import DEFAULT_LINES_PER_SECOND, LogFormat, LogLevel
from protos.process.option_errors import (
    Contradiction,
    ContradictionsError,
    Findings,
    repaired,
)
from protos.process.option_printing import printed
from protos.process.option_sources import ConfigFile, Environment, Flags, Source, merged
from protos.process.otlp_options import usable_collector
from protos.process.tls import TLSFileError, TLSFiles, check_certificates, check_key
from protos.signature import EmbeddingKey

# Variables that begin like a service's, and are those of the program that builds for it.
OTHER_PROGRAMS = ("BUILD_",)

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
# More than any machine's cores; PyTorch takes memory for each thread.
LARGEST_THREAD_COUNT = 1024
MAX_MODEL_NAME_LENGTH = 256


def listed(values: object) -> object:
    """Reads what a variable or the command line has: values with commas between, or a JSON list."""
    if not isinstance(values, str):
        return values
    if not values.startswith("["):
        return values.split(",") if values else ()
    try:
        return json.loads(values)
    except ValueError as error:
        raise ValueError(f"{values} is not a JSON list") from error


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not 1 <= len(name) <= MAX_MODEL_NAME_LENGTH or "," in name:
            raise ValueError(
                f"{name!r} cannot be a model's name, which has 1 to {MAX_MODEL_NAME_LENGTH}"
                " characters and no comma"
            )
    return tuple(dict.fromkeys(names))


# Repeated on the command line they arrive as one text, with commas between them.
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(listed)]
ModelNames = Annotated[Names, AfterValidator(_distinct)]


@lru_cache  # the gateway asks it of each request's client
def is_loopback(host: str) -> bool:
    """Says whether what listens on this address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _is_on_loopback(options: dict[str, Any]) -> bool:
    return is_loopback(options.get("host", ""))


def _readable_key(path: Path) -> Path:
    EmbeddingKey.read(path)
    return path.absolute()


CertificatesPath = Annotated[Path, AfterValidator(check_certificates)]
KeyPath = Annotated[Path, AfterValidator(check_key)]


def missing_checkpoint(folder: Path) -> Iterator[Contradiction]:
    """Yields why the folder of the option `checkpoint` is none; nothing where it is one."""
    try:
        require_folder(folder)
    except CheckpointError as error:
        yield Contradiction(("checkpoint",), str(error))


def wrong_pair(options: Options, certificate: str, key: str) -> Iterator[Contradiction]:
    """Yields why the files of a certificate and its key, options of these names, are no pair."""
    files = getattr(options, certificate), getattr(options, key)
    if any(files) != all(files):
        yield Contradiction((certificate, key), "they go together")
    elif all(files):
        try:
            TLSFiles(*files).check()
        except TLSFileError as error:
            yield Contradiction((certificate, key), str(error))


class Options(BaseSettings):
    """A program's options: each field is a flag, an environment variable and a line of help.

    A program's own class adds `env_prefix` and `cli_prog_name`, and yields in `contradictions` what
    may not be said together.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        use_attribute_docstrings=True,
        extra="forbid",
        ser_json_inf_nan="strings",  # which are read back: a time may be infinite
    )

    def contradictions(self) -> Iterator[Contradiction]:
        """Yields what is wrong with options that are right by themselves."""
        yield from ()

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if found := [*self.contradictions()]:
            raise ContradictionsError(found)
        return self


class ServingSettings(Options):
    """The options that all three processes share; each one's Settings adds its own."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all of the machine's."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port to listen on; 0 takes a free one and logs it."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Port of `host` on which Prometheus finds metrics, at /metrics; 0 takes a free one and logs
    it. Default: none are served."""
    tls_certificate_file: CertificatesPath | None = None
    """File of the certificate with which this server says who it is, in PEM form, and of those
    between it and its authority: connections are encrypted then, with TLS 1.2 or later, and others
    refused. It is read anew when it changes, and connections stay. Default: none are encrypted."""
    tls_key_file: KeyPath | None = None
    """File of the certificate's private key, in PEM form without a passphrase."""
    tls_client_ca_file: CertificatesPath | None = None
    """File of the certificates of the authorities that sign clients' certificates: clients without
    one are refused (mutual TLS). Default: clients need none."""
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
    otlp_endpoint: Annotated[str, AfterValidator(usable_collector)] | None = None
    """URL of an OpenTelemetry collector that gets traces, and from the gateway histograms, e.g.
    http://localhost:4317; needs the extra otel. The rest is told by OpenTelemetry's own variables,
    as OTEL_TRACES_SAMPLER. Default: none is made."""
    config: Path | None = None
    """TOML file of options. A program reads its own table, [vision], [llm], [gateway] or [serve],
    so that one file may serve all; names are written as here, with _ for -. The command line
    and the environment go before the file."""
    print_config: bool = False
    """Show all options as they are in effect, as a file for --config that says where each comes
    from, and end. Secrets are not shown."""

    def contradictions(self) -> Iterator[Contradiction]:
        """Yields ports that are used twice, half of TLS, and what a subclass adds."""
        yield from super().contradictions()
        ports = ((name, port) for name, port in self if name.endswith("port") and port)
        for (one, port), (other, same) in combinations(ports, 2):
            if port == same:
                yield Contradiction((one, other), f"both are {port}")
        yield from wrong_pair(self, "tls_certificate_file", "tls_key_file")
        if self.tls_client_ca_file and not self.tls:
            own = "tls_certificate_file"
            yield Contradiction(("tls_client_ca_file",), "it needs --tls-certificate-file", (own,))

    @property
    def tls(self) -> TLSFiles | None:
        """The files of this server's TLS; None where connections are not encrypted."""
        if not self.tls_certificate_file:
            return None
        return TLSFiles(self.tls_certificate_file, self.tls_key_file, self.tls_client_ca_file)


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
    tls_client_names: Names = ()
    """Names of the clients that may call: DNS names or URIs (SPIFFE) of which the client's
    certificate must have one. May be given several times (or as a JSON list); necessary with
    --tls-client-ca-file, as an authority signs more than gateways. Only the health is told to any
    of its clients."""

    def contradictions(self) -> Iterator[Contradiction]:
        """Yields clients of mutual TLS that nobody has named, and what a subclass adds."""
        yield from super().contradictions()
        if bool(self.tls_client_ca_file) != bool(self.tls_client_names):
            yield Contradiction(("tls_client_ca_file", "tls_client_names"), "they go together")

    @property
    def client_names(self) -> frozenset[str] | None:
        """The names of the clients that may call; None for anybody."""
        return frozenset(self.tls_client_names) if self.tls_client_ca_file else None


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
    engine_process: Literal["auto", "own", "none"] | Path = "auto"
    """Where the engine is: in a process of its own (own), which ends with this one; in this one
    (none); or in an engine host that somebody else has started, by the path of its socket. auto:
    own where the engine torch of the LLM service is on CUDA, so that what serves requests takes
    none of the time in which the GPU's next step is prepared; else none."""
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

    def contradictions(self) -> Iterator[Contradiction]:
        """Yields options of an engine that is not chosen, and what a subclass adds."""
        yield from super().contradictions()
        for name in type(self).model_fields:
            group = getattr(self, name)
            if name != self.engine and isinstance(group, EngineOptions):
                sentence = f"an option of the engine {name}, but the engine is {self.engine}"
                for option in sorted(group.model_fields_set):
                    yield Contradiction((f"{name}.{option}",), sentence, ("engine",))


class CheckOption(Options):
    """The option of a program that checks a checkpoint in place of serving it."""

    check: CheckpointFolder | None = None
    """Check this checkpoint in place of serving one, which takes no weights into memory and needs
    no --checkpoint: say what it is and how much memory it takes, or why it is not served (exit
    status 1), and end."""

    def contradictions(self) -> Iterator[Contradiction]:
        """Yields a checkpoint that is to be served and is not there, and what a subclass adds."""
        yield from super().contradictions()
        if self.check is None:
            yield from missing_checkpoint(dict(self)["checkpoint"])

    @model_validator(mode="before")
    @classmethod
    def _mean_this_checkpoint(cls, options: dict[str, Any]) -> dict[str, Any]:
        check = options.get("check")
        return options if check is None else {**options, "checkpoint": check}


OptionsType = TypeVar("OptionsType", bound=Options)


def read_settings(cls: type[OptionsType]) -> OptionsType:
    """Reads a process's options from its command line, its environment and its config file.

    Wrong or missing options end the process with status 2 and a line for each: all of them, so that
    nobody has to start it once for each mistake. --print-config ends it with status 0.
    """
    flags, environment = Flags(cls, sys.argv[1:]), Environment(cls)
    sources: list[Source] = [flags, environment]
    if issubclass(cls, ServingSettings):
        environment.refuse_unknown(OTHER_PROGRAMS)
        sources.append(_config_file(cls, sources))
    values: dict[str, Any] = {}
    for source in reversed(sources):
        values = merged(values, source.values)
    settings, sentences = _validated(cls, values, sources)
    sentences = [*(fault for source in sources for fault in source.faults), *sentences]
    if settings is None or sentences:
        sys.stderr.write("".join(f"{sentence}\n" for sentence in sentences))
        sys.exit(2)
    if isinstance(settings, ServingSettings) and settings.print_config:
        sys.stdout.write(printed(settings, sources))
        sys.exit(0)
    return settings


def _config_file(cls: type[Options], sources: Sequence[Source]) -> ConfigFile:
    for source in sources:
        if path := source.values.get("config"):
            return ConfigFile(cls, Path(path), source.name(("config",)))
    return ConfigFile(cls, None, "")


def _validated(
    cls: type[OptionsType], values: Mapping[str, Any], sources: Sequence[Source]
) -> tuple[OptionsType | None, list[str]]:
    """Returns the settings, or None and all that is wrong with them.

    Options are compared with each other where each is right by itself: so those that are not are
    left out, and the rest is validated once more.
    """
    try:
        return built(cls, values), []
    except ValidationError as error:
        findings = Findings(cls, error, sources)
    contradictions = findings.contradictions
    if not contradictions:
        try:
            built(cls, repaired(cls, values, findings))
        except ValidationError as error:
            contradictions = Findings(cls, error, sources).contradictions
    untouched = [each for each in contradictions if not findings.touches(each)]
    return None, [*findings.sentences(), *map(findings.sentence, untouched)]


def built(cls: type[OptionsType], values: Mapping[str, Any]) -> OptionsType:
    """Returns the settings of these values alone; no other source is looked at.

    Raises:
        ValidationError: they are wrong.
    """
    settings = cls.__new__(cls)
    BaseModel.__init__(settings, **values)  # its own __init__ would look at the environment again
    return settings
