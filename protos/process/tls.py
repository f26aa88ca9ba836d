"""The files of TLS: a certificate, its key, and the authorities whose peers are trusted."""

from __future__ import annotations

import asyncio
import ssl
import stat
import time

# The standard library reads a certificate that no peer has shown by this function alone.
from _ssl import _test_decode_cert  # type: ignore[attr-defined]
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from protos.process.watched_files import state_of

logger = structlog.get_logger()

DAY_SECONDS = 86_400
# With fewer left somebody should know that nothing renews the certificate, and know it each day.
WARNING_DAYS = 14
WARNING_SECONDS = DAY_SECONDS


class TLSFileError(ValueError):
    """A file of TLS cannot be used; the message is one sentence that names it."""


@dataclass(frozen=True)
class TLSContents:
    """What the files hold, in PEM form; None where there is no such file.

    Attributes:
        certificate: of this process, then those between it and its authority.
        key: the certificate's.
        authorities: certificates of those that sign the peers'.
    """

    certificate: bytes | None
    key: bytes | None
    authorities: bytes | None


@dataclass(frozen=True)
class TLSFiles:
    """Where one end of connections has its certificate and key, and whom it trusts.

    Attributes:
        certificate, key: both or neither.
        authorities: certificates of those that sign the peers'; None where peers need none.
    """

    certificate: Path | None
    key: Path | None
    authorities: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that there are."""
        return tuple(path for path in (self.certificate, self.key, self.authorities) if path)

    def check(self) -> None:
        """Raises TLSFileError unless a process can start with what the files hold now."""
        if self.certificate and self.key:
            _check_pair(self.certificate, self.key)
            _check_end(self.certificate)
        if self.authorities:
            check_certificates(self.authorities)

    def read(self) -> TLSContents:
        """Reads all of them; warns of a key that others can read, and of a near end.

        Raises:
            TLSFileError: one cannot be used, the key is another certificate's, that has expired,
                or the files change at this moment.
        """
        state = state_of(self.paths)
        files = (self.certificate, self.key, self.authorities)
        contents = TLSContents(*(_read(path) if path else None for path in files))
        self.check()
        self.warn()
        if state_of(self.paths) != state:
            raise TLSFileError(f"{' and '.join(map(str, self.paths))} are being written")
        return contents

    def warn(self) -> None:
        """Warns of a key that others can read, and of a certificate that ends soon.

        Raises:
            TLSFileError: one of them is gone.
        """
        if self.certificate and _days_left(self.certificate) < WARNING_DAYS:
            logger.warning(
                "certificate_expires",
                path=str(self.certificate),
                days_left=round(_days_left(self.certificate), 1),
                warning="replace the file; no restart is needed",
            )
        if self.key and _mode(self.key) & stat.S_IROTH:
            logger.warning(
                "tls_key_exposed",
                path=str(self.key),
                warning="every user of this machine can read the key; chmod o-r keeps it secret",
            )


@asynccontextmanager
async def warning_daily(files: TLSFiles) -> AsyncIterator[None]:
    """Warns as `read` does, each day anew for as long as the block runs."""
    task = asyncio.create_task(_warn_daily(files))
    try:
        yield
    finally:
        task.cancel()


async def _warn_daily(files: TLSFiles) -> None:
    while True:
        await asyncio.sleep(WARNING_SECONDS)
        with suppress(TLSFileError):  # whoever reads them next says it
            await asyncio.to_thread(files.warn)


def check_certificates(path: Path) -> Path:
    """Returns the absolute path of a file that holds certificates in PEM form.

    Raises:
        TLSFileError: it does not.
    """
    try:
        text = _read(path).decode("ascii")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, UnicodeDecodeError) as error:
        raise TLSFileError(f"{path} holds no certificates in PEM form") from error
    return path.absolute()


def check_key(path: Path) -> Path:
    """Returns the absolute path of a file that holds a private key in PEM form.

    Raises:
        TLSFileError: it does not, or one would have to type its passphrase.
    """
    content = _read(path)
    if b"PRIVATE KEY-----" not in content:
        raise TLSFileError(f"{path} holds no private key in PEM form")
    if b"ENCRYPTED" in content:
        raise TLSFileError(f"the key {path} has a passphrase, and nobody is there to type it")
    return path.absolute()


def _check_pair(certificate: Path, key: Path) -> None:
    check_certificates(certificate)
    check_key(key)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, "")
    except (ssl.SSLError, OSError) as error:
        raise TLSFileError(f"the key {key} does not fit the certificate {certificate}") from error


def _check_end(certificate: Path) -> None:
    if (days_left := _days_left(certificate)) <= 0:
        raise TLSFileError(f"the certificate {certificate} expired {-days_left:.1f} days ago")


def _days_left(certificate: Path) -> float:
    with _readable(certificate):
        not_after: str = _test_decode_cert(str(certificate))["notAfter"]
    return (ssl.cert_time_to_seconds(not_after) - time.time()) / DAY_SECONDS


def _mode(path: Path) -> int:
    with _readable(path):
        return path.stat().st_mode


def _read(path: Path) -> bytes:
    with _readable(path):
        return path.read_bytes()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # of ssl, too
        raise TLSFileError(f"{path} cannot be read: {error.strerror}") from error
