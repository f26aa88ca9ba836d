"""What a state folder tells of the services that were started from it last."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from gateway.local.processes import Service
from protos.process.probe import ProbeTLS

FILE_NAME = "services.json"


@dataclass(frozen=True)
class ServiceRecord:
    """Where a service listens, its process, and by which files it speaks TLS.

    Attributes:
        pid: 0 before it is started.
        certificate, key: empty where it listens in plain text.
    """

    name: str
    host: str
    port: int
    pid: int
    certificate: str = ""
    key: str = ""

    @classmethod
    def of(cls, service: Service) -> ServiceRecord:
        tls = service.tls or ProbeTLS()
        files = (str(path or "") for path in (tls.certificate, tls.key))
        return cls(service.name, service.host, service.port, service.pid, *files)

    def open(self, folder: Path) -> Service:
        """Returns the service, whose log is in the folder."""
        tls = ProbeTLS.of_server(Path(self.certificate), Path(self.key)) if self.key else None
        return Service(folder / f"{self.name}.log", self.port, self.pid, self.host, tls)


@dataclass(frozen=True)
class Record:
    """Three services and what they serve.

    Attributes:
        url: the gateway's address for clients.
        model: the name under which the checkpoint is served.
        checkpoint: its folder.
        drain_seconds: what requests in flight get at the end.
        services: in the order in which they start.
        mps: whether NVIDIA's multi-process service was started for them.
    """

    url: str
    model: str
    checkpoint: str
    drain_seconds: float
    services: list[ServiceRecord]
    mps: bool = False

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
        return [service.open(folder) for service in self.services]


def forget(folder: Path) -> None:
    """Makes a folder tell nothing."""
    (folder / FILE_NAME).unlink(missing_ok=True)
