"""What gRPC encrypts connections with, and whom it finds at the other end."""

from __future__ import annotations

from typing import Any

import grpc
import structlog

from protos.process.tls import TLSFileError, TLSFiles
from protos.process.watched_files import state_of

logger = structlog.get_logger()


def server_credentials(files: TLSFiles) -> grpc.ServerCredentials:
    """Returns a server's credentials: each new connection gets what the files hold by then.

    Where they name authorities, clients need a certificate. Files that cannot be used are logged,
    and those from before stay in use.

    Raises:
        TLSFileError: they cannot be used from the start.
    """
    renewal = _Renewal(files)
    return grpc.dynamic_ssl_server_credentials(
        _configuration(files),
        renewal.changed,  # type: ignore[arg-type] # None is for no change, says gRPC
        require_client_authentication=files.authorities is not None,
    )


def client_credentials(files: TLSFiles) -> grpc.ChannelCredentials:
    """Returns a client's credentials, of what the files hold now.

    Raises:
        TLSFileError: they cannot be used.
    """
    contents = files.read()
    return grpc.ssl_channel_credentials(contents.authorities, contents.key, contents.certificate)


def peer_names(context: grpc.aio.ServicerContext[Any, Any]) -> list[str]:
    """Returns the DNS names and URIs of the certificate that a caller has shown."""
    properties = context.auth_context()
    names = (*properties.get("peer_dns", ()), *properties.get("peer_uri", ()))
    return [name.decode("utf-8", "replace") for name in names]


class _Renewal:
    """What a server asks at each new connection, in a thread of gRPC's."""

    def __init__(self, files: TLSFiles) -> None:
        self._files = files
        self._state = state_of(files.paths)

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns what the files hold, if that is new and can be used."""
        if (state := state_of(self._files.paths)) == self._state:
            return None
        self._state = state
        try:
            configuration = _configuration(self._files)
        except TLSFileError as error:
            logger.error("certificate_kept", error=str(error))
            return None
        logger.info("certificate_renewed", path=str(self._files.certificate))
        return configuration


def _configuration(files: TLSFiles) -> grpc.ServerCertificateConfiguration:
    contents = files.read()
    assert contents.key
    assert contents.certificate
    pair = (contents.key, contents.certificate)
    return grpc.ssl_server_certificate_configuration([pair], contents.authorities)
