"""The certificates of the three processes: made for one start, or the user's own."""

from __future__ import annotations

import os
import re
import socket
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic_settings import SettingsConfigDict

from gateway.local.processes import GATEWAY, TITLES, StartError
from gateway.local.settings import Settings
from protos.process.option_sources import ConfigFile, Environment, merged
from protos.process.probe import ProbeTLS
from protos.process.settings import ServingSettings
from protos.process.tls import TLSFiles

if TYPE_CHECKING:
    from trustme import LeafCert

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?")
# The name by which the services know the gateway.
CLIENT_NAME = "internvl-gateway"
# Processes that run longer than this are none that somebody tries out.
LIFETIME = timedelta(days=365)


class MadeCertificates:
    """Certificates of an authority that is thrown away once it has signed them."""

    def __init__(self, authority_file: Path, host: str) -> None:
        """Makes them.

        Args:
            authority_file: gets the authority's certificate; the others go beside it, into a folder
                into which no other user sees.
            host: where clients on this machine reach the gateway.

        Raises:
            StartError: the library that makes them is not installed.
        """
        try:
            from trustme import CA  # of an extra
        except ImportError as error:
            raise StartError(
                "--dev-tls needs trustme: pip install 'internvl-serving[dev-tls]'"
            ) from error
        self._authority = authority_file
        self._folder = authority_file.parent
        self._folder.mkdir(exist_ok=True)
        self._folder.chmod(0o700)
        authority = CA(organization_name="internvl-serve --dev-tls")
        _write(self._authority, authority.cert_pem.bytes())
        for name in TITLES:
            names = [*LOCAL_NAMES, host, *filter(HOST_NAME.fullmatch, [socket.gethostname()])]
            names += [CLIENT_NAME] if name == GATEWAY else []
            end = datetime.now(timezone.utc) + LIFETIME
            self._write(name, authority.issue_cert(*dict.fromkeys(names), not_after=end))

    def _write(self, name: str, leaf: LeafCert) -> None:
        certificate, key = self._files(name)
        _write(certificate, b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        _write(key, leaf.private_key_pem.bytes())

    def _files(self, name: str) -> tuple[Path, Path]:
        return self._folder / f"{name}.crt", self._folder / f"{name}.key"

    def arguments(self, name: str) -> list[str]:
        """Returns the options of TLS that a program is started with."""
        certificate, key = map(str, self._files(name))
        authority = str(self._authority)
        server = ["--tls-certificate-file", certificate, "--tls-key-file", key]
        if name == GATEWAY:
            client = ["--service-certificate-file", certificate, "--service-key-file", key]
            return [*server, "--service-ca-file", authority, *client]
        return [*server, "--tls-client-ca-file", authority, "--tls-client-names", CLIENT_NAME]

    def probe(self, name: str) -> ProbeTLS:
        """Returns how a process is asked for its health."""
        return ProbeTLS.of_server(*self._files(name))


def _write(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


class GivenCertificates:
    """Certificates that the user has: the gateway's by our options, all by the programs' own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def arguments(self, name: str) -> list[str]:
        """Returns the options of TLS that a program is started with."""
        files = self._settings.tls
        if name != GATEWAY or files is None:
            return []
        names = ("--tls-certificate-file", "--tls-key-file", "--tls-client-ca-file")
        paths = (files.certificate, files.key, files.authorities)
        given = ((option, str(path)) for option, path in zip(names, paths, strict=True) if path)
        return [word for pair in given for word in pair]

    def probe(self, name: str) -> ProbeTLS | None:
        """Returns how a process is asked for its health; None: in plain text."""
        own = self._settings.tls if name == GATEWAY else None
        files = own or _files_of(name, self._settings.config)
        if files is None or not (files.certificate and files.key):
            return None
        return ProbeTLS.of_server(files.certificate, files.key)


def _files_of(name: str, config: Path | None) -> TLSFiles | None:
    """Returns what a program will find in its variables and its table of the config file."""

    class Program(ServingSettings):
        model_config = SettingsConfigDict(env_prefix=f"INTERNVL_{name.upper()}_")

    # What is wrong in them the program itself will say.
    table = ConfigFile(Program, config, "--config").values
    values = merged(table, Environment(Program).values)
    files = [values.get(option) for option in ("tls_certificate_file", "tls_key_file")]
    return TLSFiles(Path(str(files[0])), Path(str(files[1]))) if all(files) else None


def authority_file(settings: Settings) -> Path:
    """Returns the file of the authority of --dev-tls, whom clients have to trust."""
    return settings.state_folder / "tls" / "ca.crt"


def make_certificates(settings: Settings, host: str) -> MadeCertificates | GivenCertificates:
    """Returns those of this start; `host` is where clients on this machine reach the gateway.

    Raises:
        StartError: they cannot be made.
    """
    if settings.dev_tls:
        return MadeCertificates(authority_file(settings), host)
    return GivenCertificates(settings)
