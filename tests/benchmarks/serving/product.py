"""The product of one source tree: its three processes, and what their logs say of requests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.local.ports import LOOPBACK, free_port

# What each process logs once for a request about one new picture: the gateway by its event, a
# service by its route, and by an event of its own in an older tree.
LINES = {
    "gateway": ("request",),
    "vision": ("EncodeImage", "image_encoded"),
    "llm": ("Generate", "generated"),
}
# What is measured is in the logs: no line may be left out.
EVERY_LINE = {f"INTERNVL_{name.upper()}_LOG_LINES_PER_SECOND": "1e9" for name in LINES}
LOG_SECONDS = 5.0
# A stopped run does not wait for the requests in flight.
DRAIN_SECONDS = 1

# A request's lines, by process.
Lines = Mapping[str, Mapping[str, Any]]


@dataclass
class Product:
    """Three processes that serve.

    Attributes:
        name: tells it from another source tree's.
        model: the checkpoint's name.
        url: the gateway's address.
        logs: the folder of the three logs.
    """

    name: str
    model: str
    url: str
    logs: Path
    _read_counts: dict[str, int] = field(default_factory=dict, init=False)

    def lines(self, request_ids: Collection[str]) -> dict[str, Lines]:
        """Returns what the processes have logged of these requests since it was last asked.

        Raises:
            ValueError: one of them is not in all three logs.
        """
        found: dict[str, dict[str, Mapping[str, Any]]] = {name: {} for name in request_ids}
        end = time.monotonic() + LOG_SECONDS
        while True:
            for process in LINES:
                for line in self._new_lines(process):
                    if line.get("request_id") in found:
                        found[line["request_id"]][process] = line
            missing = [name for name, lines in found.items() if lines.keys() != LINES.keys()]
            if not missing:
                return {**found}
            if time.monotonic() > end:
                raise ValueError(f"{len(missing)} of {len(found)} requests are not in all logs")
            time.sleep(0.05)

    def _new_lines(self, process: str) -> Iterator[dict[str, Any]]:
        """Yields the events of a process's requests; not what libraries print among them."""
        with (self.logs / f"{process}.log").open("rb") as log:
            log.seek(self._read_counts.get(process, 0))
            data, newline, _ = log.read().rpartition(b"\n")
        self._read_counts[process] = self._read_counts.get(process, 0) + len(data + newline)
        for text in data.splitlines():
            if text.startswith(b"{") and text.endswith(b"}"):
                line = json.loads(text)
                key = "event" if process == "gateway" else "route"
                if line.get(key, line["event"]) in LINES[process]:
                    yield line


@contextmanager
def serving(
    name: str, tree: Path, checkpoint: Path, variables: Mapping[str, str]
) -> Iterator[Product]:
    """Yields a source tree's product while its own `internvl-serve` runs it.

    Args:
        name: as in Product.
        tree: the folder with the packages.
        checkpoint: what is served.
        variables: options of the services; those that are set already count.

    Raises:
        RuntimeError: it did not start.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "--checkpoint": str(checkpoint.absolute()),
            "--state-folder": folder,
            "--port": str(port),
            "--drain-seconds": str(DRAIN_SECONDS),
        }
        words = [word for option in options.items() for word in option]
        with subprocess.Popen(
            [sys.executable, "-m", "gateway.local", *words],
            cwd=tree,
            env={**EVERY_LINE, **variables, **os.environ, "PYTHONPATH": str(tree.absolute())},
            stdout=subprocess.PIPE,
            text=True,
        ) as command:
            assert command.stdout is not None
            try:
                if not any(" is served at " in line for line in command.stdout):
                    raise RuntimeError(f"the services of {tree} did not start")
                yield Product(name, checkpoint.name, f"http://{LOOPBACK}:{port}", Path(folder))
            finally:
                command.terminate()
                command.communicate()
