"""Every option of the gateway's process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yarl
from pydantic import (
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import SettingsConfigDict

from gateway.access.key_file import KeysFile
from gateway.access.key_source import KeySource, own_key
from gateway.bodies import BodyLimits
from gateway.connections import ConnectionLimits
from gateway.descriptors import default_connection_count, most_connections
from gateway.images.addresses import AddressPolicy
from gateway.images.data_urls import ContentLimits
from gateway.images.downloads import DownloadOptions
from gateway.images.folders import Folders
from gateway.origins import AllowedOrigins
from gateway.release import release
from gateway.services.channel import ServiceTLS
from gateway.services.routing import QueueLimits
from protos.process.option_errors import Contradiction
from protos.process.settings import (
    GIB,
    MIB,
    CertificatesPath,
    KeyPath,
    ServingSettings,
    wrong_pair,
)
from protos.process.tls import TLSFiles

# Each limit with the one that comes before it: where that is less, the limit is never reached.
OUTER_LIMITS = (
    ("max_text_byte_count", "max_body_byte_count"),
    ("max_image_byte_count", "max_total_image_byte_count"),
    ("max_body_byte_count", "max_held_byte_count"),
    ("max_total_image_byte_count", "max_held_byte_count"),
    ("image_fetch_seconds", "request_seconds"),
    ("max_queue_seconds", "request_seconds"),
)

AccessLog = Literal["failed", "requests", "all"]


def _request_seconds(options: dict[str, Any]) -> float:
    return float(options["request_seconds"])


class Settings(ServingSettings):
    """The gateway: OpenAI's HTTP interface in front of the vision service and the LLM service."""

    model_config = SettingsConfigDict(
        env_prefix="INTERNVL_GATEWAY_", cli_prog_name="internvl-gateway"
    )

    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one and logs it."""
    vision_address: str = Field(default="127.0.0.1:50051", min_length=1)
    """Address of the vision service as gRPC writes it; all addresses of a name share the calls."""
    llm_address: str = Field(default="127.0.0.1:50052", min_length=1)
    """Address of the LLM service as gRPC writes it; all addresses of a name share the calls."""
    service_ca_file: CertificatesPath | None = None
    """File of the certificates of the authorities that sign the services' certificates, in PEM
    form: connections to both services are encrypted then. This file and the next two are read anew
    when they change, and calls go on. Default: none are encrypted."""
    service_certificate_file: CertificatesPath | None = None
    """File of the gateway's own certificate, for services that want one (--tls-client-ca-file)."""
    service_key_file: KeyPath | None = None
    """File of that certificate's private key, without a passphrase."""
    service_server_name: str = ""
    """Name that the services' certificates must have. Default: the one in --vision-address or
    --llm-address, which in a list of numbers is none."""
    page: bool = True
    """Serve the web page at /: a playground to ask about pictures. --no-page turns it off."""
    allow_mismatched_checkpoints: bool = False
    """Serve pictures though the two services run different checkpoints, if only the rows have the
    same length: for experiments. The log has a warning."""
    file_root: Folders = ()
    """Folder below which file:// URLs may read; may be given several times (or as a JSON list).
    None: they are refused."""
    allowed_private_hosts: tuple[str, ...] = ()
    """Hosts and networks (JSON list) that image URLs may lead to though they are not public."""
    allowed_origins: tuple[str, ...] = ()
    """Origins (JSON list) whose web pages may call, e.g. '["https://chat.example.com"]'; '["*"]':
    all."""
    api_keys_file: KeysFile | None = None
    """YAML file of API keys: names, sha256 digests and limits, as internvl-gateway-keys writes it.
    Whoever calls needs one of them. Read anew when it changes, and on SIGHUP. Default: nobody needs
    a key."""
    api_key: SecretStr | None = None
    """One API key, of 16 characters at least, beside those of the file. Better given as a variable
    than as a flag, which other users of the machine can see."""
    image_user_agent: str = Field(
        default_factory=lambda: release().user_agent,
        max_length=512,
        pattern=r"^[!-~]([ -~]*[!-~])?$",
    )
    """What the servers of image URLs are told about this one (User-Agent). Some want an address in
    it where its operator can be reached. By default internvl-serving/VERSION and its page."""
    image_proxy: SecretStr | None = None
    """HTTP proxy through which images are fetched, http://[USER:PASSWORD@]HOST:PORT. It decides
    then what image URLs may lead to: only addresses written as numbers are still checked here.
    Better given as a variable than as a flag, which other users of the machine can see. HTTP_PROXY
    and the like are not read."""
    max_body_byte_count: int = Field(default=72 * MIB, ge=1)
    """Largest request body, in bytes. In it, the largest image file takes a third more."""
    max_text_byte_count: int = Field(default=4 * MIB, ge=1)
    """Most bytes of a request body without the images that it holds as data URLs."""
    max_image_byte_count: int = Field(default=48 * MIB, ge=1)
    """Largest image file, in bytes."""
    max_total_image_byte_count: int = Field(default=128 * MIB, ge=1)
    """Most bytes of all image files of one request together."""
    max_image_count: int = Field(default=64, ge=0)
    """Most images in one request."""
    max_image_host_count: int = Field(default=16, ge=1)
    """Most hosts that the image URLs of one request lead to, redirects included."""
    gateway_count: str = Field(
        default="1",
        pattern="^([1-9][0-9]{0,5}|dns:.+)$",
        coerce_numbers_to_str=True,
        json_schema_extra={"type": ["integer", "string"]},
    )
    """Gateways among which the limits of each API key are shared out: each counts by itself, and
    gives a share of them, rounded up. A number, or a name that has the addresses of all of them, as
    a headless service has: dns:///NAME."""
    strict_fields: bool = False
    """Refuse requests with fields that this server does not know, rather than ignore these."""
    access_log: AccessLog = "requests"
    """Which requests have a line in the log: failed, those that the server failed; requests, all
    but questions for its health and load, and for the page; all. Failed ones are warnings."""
    usage_log: Path | None = None
    """File to which a JSON line is added for each request: who used what. Default: none is
    written."""
    server_timing: bool = False
    """Tell every client where the time of its chat request went and where its pictures came from:
    in the header Server-Timing, of a stream in a comment before its end. Without it those are told
    that ask by the header x-internvl-server-timing: 1, as the web page does; with --no-page nobody
    is."""
    max_request_count: int = Field(default=256, ge=1)
    """Most chat requests in flight; further ones are refused with 429."""
    max_held_byte_count: int = Field(default=3 * GIB, ge=1)
    """Most bytes of bodies and image files that all requests hold together, without the first
    64 KiB of each; further ones are refused with 429. The process may take a third more."""
    max_connection_count: int = Field(default_factory=default_connection_count, ge=1)
    """Most connections of clients; a further one takes the place of the longest idle one. By
    default 4096, or what the limit of open files has room for."""
    header_seconds: float = Field(default=30.0, gt=0)
    """Longest time for a request's head to arrive, from its first byte."""
    idle_seconds: float = Field(default=30.0, gt=0)
    """Longest time that a connection may stay open without a request, or without reading on in the
    end of an answer. Behind a load balancer: more than its own."""
    body_seconds: float = Field(default=30.0, gt=0)
    """Longest time for a request's body to arrive."""
    image_fetch_seconds: float = Field(default=10.0, gt=0)
    """Longest time to fetch one image, redirects included."""
    request_seconds: float = Field(default=300.0, gt=0, le=86_400)
    """Longest time for one chat request, images included; at most a day."""

    spill_queue_seconds: float = Field(default=0.25, ge=0)
    """How long the queue of a conversation's or an image's own replica may be before another one is
    asked; where all that are asked have a longer one, the shortest gets the call. About three times
    what a request takes: less parts conversations from their caches, more lets some wait longer."""
    max_queue_seconds: float = Field(default_factory=_request_seconds, ge=0)
    """Longest time that a request may wait for its turn in either service; one that would have to
    wait longer is refused at once with 429, which says when to try again. Default: as
    request_seconds."""
    sse_keep_alive_seconds: float = Field(default=15.0, ge=0)
    """Longest silence of a stream, after which a comment line is sent, so that proxies keep it; 0:
    none is sent."""

    def contradictions(self) -> Iterator[Contradiction]:
        """Yields limits that were given, and are never reached, and TLS that lacks a file."""
        yield from super().contradictions()
        for name, outer in OUTER_LIMITS:
            limit, first = getattr(self, name), getattr(self, outer)
            if name in self.model_fields_set and limit > first:
                sentence = f"{limit} is more than {first}, and so never reached"
                yield Contradiction((name, outer), sentence)
        yield from wrong_pair(self, "service_certificate_file", "service_key_file")
        for name in ("service_certificate_file", "service_server_name"):
            if getattr(self, name) and not self.service_ca_file:
                yield Contradiction((name,), "it needs --service-ca-file", ("service_ca_file",))

    @property
    def service_tls(self) -> ServiceTLS | None:
        """How connections to the services are encrypted; None where they are not."""
        if not self.service_ca_file:
            return None
        files = TLSFiles(self.service_certificate_file, self.service_key_file, self.service_ca_file)
        return ServiceTLS(files, self.service_server_name)

    @field_validator("file_root")
    @classmethod
    def _are_folders(cls, roots: tuple[Path, ...]) -> tuple[Path, ...]:
        for root in roots:
            if not root.is_dir():
                raise ValueError(f"{root} is not a folder")
        return roots

    @field_validator("api_key")
    @classmethod
    def _is_another_key(cls, key: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if key is not None:
            own = own_key(key.get_secret_value())
            KeySource(info.data.get("api_keys_file"), own).read()
        return key

    @field_validator("image_proxy")
    @classmethod
    def _is_proxy(cls, proxy: SecretStr | None) -> SecretStr | None:
        if proxy is not None:
            try:
                url = yarl.URL(proxy.get_secret_value())
            except ValueError:
                url = yarl.URL()
            if url.scheme != "http" or not url.host or url.raw_path_qs != "/":
                raise ValueError("a proxy must have the form http://[USER:PASSWORD@]HOST:PORT")
        return proxy

    @field_validator("max_connection_count")
    @classmethod
    def _fits(cls, count: int) -> int:
        if count > (most := most_connections()):
            raise ValueError(f"{count} connections; the limit of open files has room for {most}")
        return count

    @field_validator("allowed_private_hosts")
    @classmethod
    def _parsable(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        AddressPolicy.parse(entries)
        return entries

    @field_validator("allowed_origins")
    @classmethod
    def _are_origins(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        AllowedOrigins(entries)
        return entries

    @property
    def key_source(self) -> KeySource | None:
        """Where API keys are; None: nobody needs one."""
        if self.api_keys_file is None and self.api_key is None:
            return None
        own = own_key(self.api_key.get_secret_value()) if self.api_key else None
        return KeySource(self.api_keys_file, own)

    @property
    def body_limits(self) -> BodyLimits:
        """What the body of a request may cost."""
        content = ContentLimits(
            self.max_text_byte_count, self.max_image_count, self.max_image_byte_count
        )
        return BodyLimits(self.max_body_byte_count, self.body_seconds, content)

    @property
    def connection_limits(self) -> ConnectionLimits:
        """What clients may hold."""
        return ConnectionLimits(self.max_connection_count, self.header_seconds, self.idle_seconds)

    @property
    def queue_limits(self) -> QueueLimits:
        """How long the queues of the services may be."""
        return QueueLimits(self.spill_queue_seconds, self.max_queue_seconds)

    @property
    def address_policy(self) -> AddressPolicy:
        """Which addresses image URLs may lead to."""
        return AddressPolicy.parse(self.allowed_private_hosts)

    @property
    def download_options(self) -> DownloadOptions:
        """How images are fetched from http(s):// URLs."""
        proxy = self.image_proxy.get_secret_value() if self.image_proxy else ""
        return DownloadOptions(
            self.address_policy,
            self.image_fetch_seconds,
            self.max_image_byte_count,
            self.image_user_agent,
            yarl.URL(proxy) if proxy else None,
        )
