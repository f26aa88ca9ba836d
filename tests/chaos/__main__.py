"""`python -m tests.chaos`: a run of any size against three services on this machine."""

from __future__ import annotations

import argparse
import asyncio
import secrets
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
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="no process is ended")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    asyncio.run(_run(options.requests, options.seed, options.soak))


async def _run(request_count: int, seed: int, soak_seconds: float | None) -> None:
    start = time.monotonic()

    def progress(line: str) -> None:
        print(f"{time.monotonic() - start:7.1f} s  {line}", flush=True)

    schedule = drawn_schedule(
        seed, request_count, round_count=max(1, request_count // ROUND_REQUEST_COUNT)
    )
    with tempfile.TemporaryDirectory() as folder:
        async with running_campaign(Path(folder), seed, progress) as campaign:
            progress("the services run")
            try:
                if soak_seconds is None:
                    await campaign.run(request_count, schedule)
                else:
                    await campaign.soak(soak_seconds)
            finally:
                print(f"\n{written(campaign.report)}")


if __name__ == "__main__":
    main()
