"""What a state folder tells of the services that were started from it last."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from gateway.local.processes import Service

FILE_NAME = "services.json"


@dataclass(frozen=True)
class ServiceRecord:
    """Where a service listens, and its process; 0 before it is started."""

    name: str
    host: str
    port: int
    pid: int


@dataclass(frozen=True)
class Record:
    """Three services and what they serve.

    Attributes:
        url: the gateway's address for clients.
        model: the name under which the checkpoint is served.
        checkpoint: its folder.
        drain_seconds: what requests in flight get at the end.
        services: in the order in which they start.
    """

    url: str
    model: str
    checkpoint: str
    drain_seconds: float
    services: list[ServiceRecord]

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """Returns what a folder tells; None if nothing was started from it, or all is stopped."""
        try:
            values = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        services = [ServiceRecord(**service) for service in values.pop("services")]
        return cls(**values, services=services)

    def write(self, folder: Path) -> None:
        """Replaces what a folder tells; a reader sees the old or the new, never a part."""
        part = folder / f"{FILE_NAME}.{os.getpid()}"
        part.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        part.replace(folder / FILE_NAME)

    def open(self, folder: Path) -> list[Service]:
        """Returns the services."""
        return [
            Service(folder / f"{service.name}.log", service.port, service.pid, service.host)
            for service in self.services
        ]


def forget(folder: Path) -> None:
    """Makes a folder tell nothing."""
    (folder / FILE_NAME).unlink(missing_ok=True)
