"""The three services as child processes of this one, on free ports; `make serve` keeps them up."""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

START_SECONDS = 120.0
STOP_SECONDS = 15.0
GATEWAY_PORT = 8000
DEMO_CHECKPOINT = Path(__file__).parent / "checkpoint"


class StartError(RuntimeError):
    """A service ended before it served; the message has the end of its log."""


class ServiceProcess:
    """One service as a child process; its log goes to a file, its port is read from the log.

    Attributes:
        module: what `python -m` runs.
        arguments: its command line, without the port.
        log: the file that gets its standard error.
        port: where it listens, known once it serves; a restart keeps it.
    """

    def __init__(self, module: str, arguments: Sequence[str], log: Path, port: int = 0) -> None:
        self.module = module
        self.arguments = [*arguments, "--log-format", "json"]
        self.log = log
        self.port = port
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Starts the process and returns at once."""
        command = [sys.executable, "-m", self.module, *self.arguments, "--port", str(self.port)]
        # Threads that spin while they wait slow the other services down, up to 18 times.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
        self._process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environment
        )
        self._ports: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        pump = threading.Thread(target=self._pump, args=[self._process, self._ports], daemon=True)
        pump.start()

    def wait_serving(self) -> None:
        """Waits until the service takes requests.

        Raises:
            StartError: it ended, or took longer than START_SECONDS.
        """
        try:
            port = self._ports.get(timeout=START_SECONDS)
        except queue.Empty:
            port = None
        if port is None:
            raise StartError(f"{self.module} did not start:\n{self.log_tail()}")
        self.port = port

    def log_tail(self) -> str:
        """Returns the last lines of the log."""
        return "\n".join(self.log.read_text().splitlines()[-20:])

    def stop(self) -> None:
        """Sends SIGTERM and waits for the drain; after STOP_SECONDS it is killed."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Ends the process at once, as `kill -9` does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        """The process's id; 0 before it was started."""
        return self._process.pid if self._process is not None else 0

    @property
    def returncode(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.poll() if self._process is not None else None

    def _pump(self, process: subprocess.Popen[str], ports: queue.SimpleQueue[int | None]) -> None:
        assert process.stderr is not None
        with self.log.open("a") as log, process.stderr as lines:
            for line in lines:
                log.write(line)
                log.flush()
                if '"serving"' in line:
                    ports.put(json.loads(line)["port"])
        ports.put(None)


class Stack:
    """Vision service, LLM service and gateway over one checkpoint, as a context manager.

    Attributes:
        vision, llm, gateway: the processes; their logs are in `folder`.
    """

    def __init__(
        self,
        checkpoint: Path,
        folder: Path,
        *,
        port: int = 0,
        gateway_arguments: Sequence[str] = (),
        service_arguments: Sequence[str] = (),
        llm_arguments: Sequence[str] = (),
    ) -> None:
        arguments = ["--checkpoint", str(checkpoint), *service_arguments]
        self.vision = ServiceProcess("vision_service", arguments, folder / "vision.log")
        self.llm = ServiceProcess("llm_service", [*arguments, *llm_arguments], folder / "llm.log")
        self.gateway = ServiceProcess("gateway", gateway_arguments, folder / "gateway.log", port)

    def __enter__(self) -> Stack:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @property
    def url(self) -> str:
        """The gateway's address, e.g. http://127.0.0.1:8000."""
        return f"http://127.0.0.1:{self.gateway.port}"

    def _start(self) -> None:
        for service in (self.vision, self.llm):
            service.start()
        for service in (self.vision, self.llm):
            service.wait_serving()
        self.gateway.arguments += [
            "--vision-address",
            f"127.0.0.1:{self.vision.port}",
            "--llm-address",
            f"127.0.0.1:{self.llm.port}",
        ]
        self.gateway.start()
        self.gateway.wait_serving()

    def _stop(self) -> None:
        for service in (self.gateway, self.vision, self.llm):
            service.stop()


def main() -> None:
    """Keeps the three services up until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="make serve", description=main.__doc__)
    parser.add_argument("--checkpoint", type=Path, help="default: the toy model that ships")
    parser.add_argument("--port", type=int, default=GATEWAY_PORT, help="the gateway's port")
    parser.add_argument("--file-root", help="folder from which file:// URLs may be read")
    options = parser.parse_args()
    # As Ctrl-C: the services must not outlive this process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    checkpoint = options.checkpoint or DEMO_CHECKPOINT
    name = checkpoint.resolve().name if options.checkpoint else "internvl-demo"
    arguments = ["--file-root", options.file_root] if options.file_root else []
    try:
        _serve(checkpoint, name, options.port, arguments)
    except StartError as error:
        sys.exit(str(error))


def _serve(checkpoint: Path, name: str, port: int, gateway_arguments: Sequence[str]) -> None:
    print("starting the vision service, the LLM service and the gateway ...", flush=True)
    with (
        tempfile.TemporaryDirectory() as logs,
        Stack(
            checkpoint,
            Path(logs),
            port=port,
            gateway_arguments=gateway_arguments,
            llm_arguments=["--served-model-name", name],
        ) as stack,
    ):
        print(f"OpenAI API at {stack.url}/v1, model {name}; Ctrl-C stops")
        print(f"vision gRPC at 127.0.0.1:{stack.vision.port}, LLM at 127.0.0.1:{stack.llm.port}")
        _wait_while_all_run(stack)


def _wait_while_all_run(stack: Stack) -> None:
    """Waits for Ctrl-C; a service that ends by itself ends this process with its log's end."""
    services = (stack.vision, stack.llm, stack.gateway)
    try:
        while not (ended := [service for service in services if service.returncode is not None]):
            time.sleep(0.5)
    except KeyboardInterrupt:
        print("stopping")
        return
    sys.exit(f"{ended[0].module} ended:\n{ended[0].log_tail()}")


if __name__ == "__main__":
    main()
