"""A gateway that uses all replicas in turn, as it did before it looked for the one that has the
picture: the baseline of a comparison.

`python -m tests.benchmarks.replicas.baseline_gateway [the gateway's own options]`
"""

from __future__ import annotations

import json
from unittest.mock import patch

from gateway import __main__ as gateway
from gateway.services import channel

ROUND_ROBIN = {**channel.SERVICE_CONFIG, "loadBalancingConfig": [{"round_robin": {}}]}
OPTIONS = [
    *(option for option in channel.CHANNEL_OPTIONS if option[0] != "grpc.service_config"),
    ("grpc.service_config", json.dumps(ROUND_ROBIN)),
]


def main() -> None:
    """Runs the gateway."""
    with patch.object(channel, "CHANNEL_OPTIONS", OPTIONS):
        gateway.main()


if __name__ == "__main__":
    main()
