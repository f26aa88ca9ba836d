"""The shipped model behind three real processes, under the name that the customer gives to its own.

Started once for all tests that need answers which mean something (`served`).
"""

from __future__ import annotations

from pathlib import Path

from gateway.local.stack import Stack
from models.demo import DEMO_CHECKPOINT

LOOPBACK_ALONE = '["127.0.0.1"]'
CUSTOMERS_MODEL = "InternVL2_5"
# Two cores run three processes and the tests; in float32 a token is the same whatever else is in
# the batch.
SERVICE_ARGUMENTS = ("--torch.thread-count", "1", "--torch.dtype", "float32")
# Each of the three has metrics, on a port that it logs.
SCRAPED = ("--metrics-port", "0")


def served_stack(readable: Path, logs: Path) -> Stack:
    """Returns the services, yet to be started; `readable` is where pictures may be files."""
    return Stack(
        DEMO_CHECKPOINT,
        logs,
        gateway_arguments=(
            *("--file-root", str(readable), "--allowed-private-hosts", LOOPBACK_ALONE),
            *SCRAPED,
        ),
        service_arguments=(*SERVICE_ARGUMENTS, "--served-model-name", CUSTOMERS_MODEL, *SCRAPED),
    )
