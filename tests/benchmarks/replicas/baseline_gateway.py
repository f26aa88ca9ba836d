"""A gateway that uses all replicas in turn: the baseline of a comparison.

`python -m tests.benchmarks.replicas.baseline_gateway [the gateway's own options]`
"""

from __future__ import annotations

import json
from unittest.mock import patch

from gateway import __main__ as gateway
from gateway.services import channel


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
    with patch.object(channel, "service_config", in_turn):
        gateway.main()


if __name__ == "__main__":
    main()
