"""What a process warns of at its start: ports in plain text that other machines reach."""

from __future__ import annotations

import structlog

from protos.process.settings import ServingSettings, is_loopback

logger = structlog.get_logger()


def warn_of_plain_text(settings: ServingSettings) -> None:
    """Warns unless what is sent to the process's ports is encrypted, or stays on this machine."""
    if is_loopback(settings.host):
        return
    if settings.tls is None:
        logger.warning(
            "connections_plain",
            host=settings.host,
            warning="whoever is between this port and its clients reads and changes what they send;"
            " --tls-certificate-file and --tls-key-file end that, --host 127.0.0.1 keeps it here",
        )
    elif settings.metrics_port is not None:
        logger.warning(
            "metrics_plain",
            port=settings.metrics_port,
            warning="metrics are not encrypted: let nobody but Prometheus reach their port",
        )
