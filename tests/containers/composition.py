"""The services of docker/compose.yaml as containers, through docker or podman."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

FILE = Path(__file__).parents[2] / "docker" / "compose.yaml"
SERVICES = ("gateway", "vision", "llm")
# Both compose programs write them.
PROJECT_LABEL = "com.docker.compose.project"
SERVICE_LABEL = "com.docker.compose.service"
# Loading the toy model takes some seconds; several containers that start share the cores.
START_SECONDS = 300.0
POLL_SECONDS = 1.0  # a probe imports gRPC, on the cores of what starts
STOP_SECONDS = "40"  # as the compose file has it
HEALTH_PROBE = "CMD"


class NoContainersError(RuntimeError):
    """Containers cannot be run here; the message says what is missing."""


@dataclass(frozen=True)
class Tools:
    """What runs containers on this machine: `docker` or `podman`, and its compose program."""

    engine: str
    compose: tuple[str, ...]

    @classmethod
    def find(cls) -> Tools:
        """Returns docker if it runs and has compose, else podman with podman-compose.

        Raises:
            NoContainersError: neither is there.
        """
        for tools in (cls("docker", ("docker", "compose")), cls("podman", ("podman-compose",))):
            if _succeeds(tools.engine, "info") and _succeeds(*tools.compose, "version"):
                return tools
        raise NoContainersError(
            "no containers can be run here: install docker with compose and start it, "
            "or podman with podman-compose"
        )

    def has_image(self, image: str) -> bool:
        """Says whether an image is here, or can be pulled."""
        return _succeeds(self.engine, "image", "inspect", image) or _succeeds(
            self.engine, "pull", image
        )


def _succeeds(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return not subprocess.run(command, capture_output=True, check=False).returncode


@dataclass(frozen=True)
class Composition:
    """A project of its own of the compose file, on the CPU.

    Attributes:
        tools: what runs it.
        name: of the project.
        variables: what the compose file takes from the environment.
    """

    tools: Tools
    name: str
    variables: Mapping[str, str] = field(default_factory=dict)

    def compose(self, *words: str) -> str:
        """Returns what a command of compose says."""
        options = ("--project-name", self.name, "--file", str(FILE), "--profile", "cpu")
        return _output([*self.tools.compose, *options, *words], self.variables)

    def engine(self, *words: str) -> str:
        """Returns what a command of docker or podman says."""
        return _output([self.tools.engine, *words], {})

    def build(self) -> None:
        """Builds the images, as the compose file says."""
        self.compose("build")

    def up(self) -> None:
        """Starts one container of each service."""
        self.compose("up", "--detach", "--no-build")
        self.wait_healthy()

    def scale(self, service: str, count: int) -> None:
        """Starts containers of a service beside those that run already."""
        # podman-compose takes one --scale at a time, and then means all services unless told.
        options = ("--no-build", "--no-recreate", "--no-deps", "--scale", f"{service}={count}")
        self.compose("up", "--detach", *options, service)

    def down(self) -> None:
        """Removes the containers, whatever became of them, and their network."""
        if running := self._listed(SERVICE_LABEL):
            self.engine("kill", *running)
        if containers := self._listed(SERVICE_LABEL, "--all"):
            self.engine("rm", "--force", *containers)
        self.compose("down", "--remove-orphans")

    def containers(self, service: str, *options: str) -> set[str]:
        """Returns the ids of a service's containers that run."""
        return self._listed(f"{SERVICE_LABEL}={service}", *options)

    def container(self, service: str) -> str:
        """Returns the id of a service's one container."""
        (container,) = self.containers(service, "--all")
        return container

    def _listed(self, label: str, *options: str) -> set[str]:
        ours = ("--filter", f"label={PROJECT_LABEL}={self.name}", "--filter", f"label={label}")
        return set(self.engine("ps", "--quiet", "--no-trunc", *ours, *options).split())

    def run_in(self, container: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Returns how a command ended that ran in a container."""
        words = [self.tools.engine, "exec", container, *command]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    def health(self, container: str) -> int:
        """Returns the exit status of the health command that the container's image has."""
        document = json.loads(self.engine("inspect", "--type", "container", container))
        kind, *command = document[0]["Config"]["Healthcheck"]["Test"]
        assert kind == HEALTH_PROBE
        return self.run_in(container, *command).returncode

    def wait_healthy(self) -> None:
        """Waits until every container's health command succeeds.

        Raises:
            TimeoutError: one of them is not healthy in time.
        """
        deadline = time.monotonic() + START_SECONDS
        for service in SERVICES:
            for container in self.containers(service):
                while self.health(container):
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"{service}: {self.log(container)}")
                    time.sleep(POLL_SECONDS)

    def start(self, container: str) -> None:
        """Starts a container that has been stopped."""
        self.engine("start", container)

    def stop(self, container: str) -> float:
        """Stops a container with SIGTERM, and returns how many seconds that took."""
        started = time.monotonic()
        self.engine("stop", "--time", STOP_SECONDS, container)
        return time.monotonic() - started

    def exit_status(self, container: str) -> int:
        """Returns the exit status of a container that has ended."""
        return int(self.engine("inspect", "--format", "{{.State.ExitCode}}", container))

    def log(self, container: str) -> str:
        """Returns what a container has written."""
        words = [self.tools.engine, "logs", container]
        pipe, both = subprocess.PIPE, subprocess.STDOUT
        return subprocess.run(words, stdout=pipe, stderr=both, text=True, check=False).stdout

    def call_count(self, container: str) -> int:
        """Returns how many answers or embeddings a service's container has made."""
        lines = self.log(container).splitlines()
        events = [json.loads(line) for line in lines if line.startswith("{")]
        routes = ("Generate", "EncodeImage")
        return sum(event.get("route") in routes and event["status"] == "OK" for event in events)

    @contextmanager
    def running(self) -> Iterator[Composition]:
        """The three services, up until the end."""
        try:
            self.up()
            yield self
        finally:
            self.down()


def _output(command: list[str], variables: Mapping[str, str]) -> str:
    completed = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **variables}
    )
    if completed.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{completed.stdout}{completed.stderr}")
    return completed.stdout
