"""The gateway's process: settings, logs, application, until a signal."""

from __future__ import annotations

import asyncio
import signal
import sys

import structlog

from gateway.app import running_gateway
from gateway.descriptors import raise_descriptor_limit
from gateway.metrics import Metrics
from gateway.settings import Settings
from protos.process import logs
from protos.process.allocator import keep_freed_memory
from protos.process.metrics import serving_metrics
from protos.process.reload import reload_on_sighup
from protos.process.settings import MIB, read_settings
from protos.process.supervisor import supervisor

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
    async with running_gateway(settings, metrics) as port:
        logger.info("serving", service="gateway", host=settings.host, port=port)
        supervisor().serves(settings.host, port)
        async with supervisor().watching(lambda: True):
            await stop.wait()
        logger.info("draining", service="gateway")
        supervisor().drains(settings.drain_seconds)


def main() -> None:
    """Serves OpenAI HTTP until SIGTERM; exit status 1 when it cannot start."""
    supervisor()  # first, while its variables have reached no other process
    raise_descriptor_limit()
    settings = read_settings(Settings)
    logs.configure(settings.log_level, settings.log_format)
    keep_freed_memory(block_byte_count=LEAST_IMAGE_BLOCK_BYTE_COUNT)
    metrics = Metrics()
    try:
        with serving_metrics(metrics.registry, settings.host, settings.metrics_port):
            asyncio.run(serve(settings, metrics))
    except OSError as error:
        logger.error("start_failed", error=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
