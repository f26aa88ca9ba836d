"""Asks a database of known weaknesses about all that the locks name; nothing is installed.

Exit status 1: a weakness is known. Where no database answers, as offline, it says so and ends well.
`python locks/audit.py --vulnerability-service osv` asks OSV; options are those of pip-audit.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LOCKS = Path(__file__).parent
PIP_AUDIT = "pip-audit==2.10.1"
PIN = re.compile(r"^([A-Za-z0-9._-]+==[^\s;\\]+)", re.MULTILINE)


def main() -> None:
    """Says for each package what is known, and how many nobody knows."""
    pins = {pin for lock in LOCKS.glob("*.txt") for pin in PIN.findall(lock.read_text())}
    report = [one for batch in _batches(pins) for one in _asked(batch, sys.argv[1:])]
    known = [one for one in report if "vulns" in one]
    if not known:
        print("skipped: the database answers for none of the packages")
        return
    weak = [one for one in known if one["vulns"]]
    for one in weak:
        names = ", ".join(vulnerability["id"] for vulnerability in one["vulns"])
        print(f"{one['name']} {one['version']}: {names}")
    print(f"{len(known)} packages audited, {len(weak)} weak, {len(report) - len(known)} not known")
    sys.exit(1 if weak else 0)


def _batches(pins: Iterable[str]) -> list[list[str]]:
    """Returns pins so that none of a batch are of one package: pip-audit takes no two versions."""
    batches: list[dict[str, str]] = []
    for pin in sorted(pins):
        name = pin.partition("==")[0]
        batch = next((each for each in batches if name not in each), None)
        if batch is None:
            batches.append(batch := {})
        batch[name] = pin
    return [[*batch.values()] for batch in batches]


def _asked(pins: list[str], options: list[str]) -> list[dict[str, Any]]:
    """Returns what pip-audit says of packages; nothing where it cannot ask."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(pins))
        file.flush()
        command = ["uv", "tool", "run", PIP_AUDIT, "--disable-pip", "--no-deps", "--format", "json"]
        command += ["--progress-spinner", "off", "--requirement", file.name, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - uv
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except ValueError:
        print(done.stderr.strip().rpartition("\n")[2])
        return []
    return found


if __name__ == "__main__":
    main()
