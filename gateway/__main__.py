"""The gateway's process: settings, logs, application, until a signal."""

from __future__ import annotations

import asyncio
import signal
import sys

import structlog

from gateway.access.key_file import KeyFileError
from gateway.app import running_gateway
from gateway.descriptors import raise_descriptor_limit
from gateway.metrics import Metrics
from gateway.services.routing import allow_hash_keys
from gateway.settings import Settings
from gateway.traces import HISTOGRAMS
from protos.process import logs
from protos.process.allocator import keep_freed_memory
from protos.process.exposure import warn_of_plain_text
from protos.process.metrics import serving_metrics
from protos.process.reload import reload_on_sighup
from protos.process.settings import MIB, is_loopback, read_settings
from protos.process.supervisor import supervisor
from protos.process.tls import TLSFileError
from protos.process.tracing import exporting

logger = structlog.get_logger()
# What is larger is an image: kept, it would be 75 MB for each request that has none any more.
LEAST_IMAGE_BLOCK_BYTE_COUNT = MIB


async def serve(settings: Settings, metrics: Metrics) -> None:
    """Serves until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    reload_on_sighup()
    warn_of_plain_text(settings)
    warn_of_strangers(settings)
    async with running_gateway(settings, metrics) as port:
        logger.info("serving", service="gateway", host=settings.host, port=port)
        supervisor().serves(settings.host, port)
        async with supervisor().watching(lambda: True):
            await stop.wait()
        logger.info("draining", service="gateway")
        supervisor().drains(settings.drain_seconds)


def warn_of_strangers(settings: Settings) -> None:
    """Warns where whoever reaches the gateway may use it."""
    knows_callers = settings.key_source or settings.tls_client_ca_file
    if not knows_callers and not is_loopback(settings.host):
        logger.warning(
            "callers_unknown",
            host=settings.host,
            warning="whoever reaches this port uses the model; --api-keys-file asks them for keys",
        )


def main() -> None:
    """Serves OpenAI HTTP until SIGTERM; exit status 1 when it cannot start."""
    supervisor()  # first, while its variables have reached no other process
    raise_descriptor_limit()
    settings = read_settings(Settings)
    logs.configure(settings.log_level, settings.log_format, settings.log_lines_per_second)
    keep_freed_memory(block_byte_count=LEAST_IMAGE_BLOCK_BYTE_COUNT)
    metrics = Metrics()
    try:
        allow_hash_keys()  # before the exporter's channel, which may be the first
        with (
            serving_metrics(metrics.registry, settings.host, settings.metrics_port),
            exporting("internvl-gateway", settings.otlp_endpoint, HISTOGRAMS),
        ):
            asyncio.run(serve(settings, metrics))
    except (KeyFileError, OSError, TLSFileError) as error:
        logger.error("start_failed", error=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
