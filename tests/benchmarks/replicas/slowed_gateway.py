"""A gateway before services that are slowed down, which finds replicas as it ships or in turn.

`python -m tests.benchmarks.replicas.slowed_gateway hashed|in-turn SLOWNESS [its own options]`
"""

from __future__ import annotations

import json
import sys
from unittest.mock import patch

from gateway import __main__ as gateway
from gateway.services import channel, routing


def in_turn(health_name: str) -> str:
    """Returns how gRPC shares out calls without keys; compare `routing.service_config`."""
    return json.dumps(
        {
            "loadBalancingConfig": [{"round_robin": {}}],
            "healthCheckConfig": {"serviceName": health_name},
        }
    )


def main() -> None:
    """Runs the gateway."""
    program, way, slowness, *arguments = sys.argv
    config = in_turn if way == "in-turn" else routing.service_config
    busy_seconds = routing.BUSY_SECONDS * float(slowness)
    with (
        patch.object(sys, "argv", [program, *arguments]),
        patch.object(channel, "service_config", config),
        patch.object(routing, "BUSY_SECONDS", busy_seconds),
    ):
        gateway.main()


if __name__ == "__main__":
    main()
