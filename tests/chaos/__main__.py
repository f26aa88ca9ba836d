"""`python -m tests.chaos`: a run of any size against three services on this machine."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.campaign import running_campaign
from tests.chaos.report import written
from tests.chaos.schedule import drawn_schedule

# A round of all faults takes a minute or two; so many requests go with it.
ROUND_REQUEST_COUNT = 1200


def main() -> None:
    """Runs, and prints what it has shown; a traceback and exit status 1 when that is a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--requests", type=int, default=600, metavar="N")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    options = parser.parse_args()
    sys.stdout.write(f"seed {options.seed}\n")
    asyncio.run(_run(options.requests, options.seed))


async def _run(request_count: int, seed: int) -> None:
    start = time.monotonic()

    def progress(line: str) -> None:
        sys.stdout.write(f"{time.monotonic() - start:7.1f} s  {line}\n")
        sys.stdout.flush()

    schedule = drawn_schedule(
        seed, request_count, round_count=max(1, request_count // ROUND_REQUEST_COUNT)
    )
    with tempfile.TemporaryDirectory() as folder:
        async with running_campaign(Path(folder), seed, progress) as campaign:
            progress("the services run")
            try:
                await campaign.run(request_count, schedule)
            finally:
                sys.stdout.write(f"\n{written(campaign.report)}\n")


if __name__ == "__main__":
    main()
