"""The engine host: one process for the engines of both services, on the GPU that they share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic_settings import SettingsConfigDict

from gateway.local.gpus import has_gpu
from gateway.local.processes import ENGINES, TITLES, ServiceProcess, StartError
from protos.process.option_sources import ConfigFile, Environment, merged
from protos.process.probe import HEALTHY
from protos.process.settings import EngineOptions, EngineSettings

MODULE = "protos.process.engine_host"
PARTS = ("vision_service.engines.process.host", "llm_service.engines.process.host")
# Of a Unix socket's address, in bytes.
LONGEST_PATH = 107
LOADING = "loading"


class EngineHost(ServiceProcess):
    """A process that loads engines for the services that connect to it.

    Attributes:
        socket: where it listens.
    """

    def __init__(self, folder: Path) -> None:
        """Starts nothing yet.

        Raises:
            StartError: the folder's path is too long for a socket in it.
        """
        self.socket = folder / "engines.socket"
        if len(os.fsencode(self.socket)) > LONGEST_PATH:
            raise StartError(
                f"--state-folder is too long for a socket in it, {self.socket}: it may have"
                f" {LONGEST_PATH} bytes"
            )
        arguments = ["--socket", str(self.socket), *PARTS]
        super().__init__(MODULE, arguments, folder / f"{ENGINES}.log")
        self.port = 0

    @property
    def words(self) -> list[str]:
        return self.arguments

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)  # of one that was killed
        super().start()

    def health(self) -> str:
        health = super().health()
        return health if health != HEALTHY or self.socket.exists() else LOADING


class _Torch(EngineOptions):
    device: str = "auto"


def require_one_device(config: Path | None) -> None:
    """Looks into the services' variables and tables whether one process can have both engines.

    Raises:
        StartError: it cannot.
    """
    values = {name: _values(name, config) for name in ("vision", "llm")}
    for name, given in values.items():
        if (engine := given.get("engine", "torch")) != "torch":
            raise StartError(
                f"--one-gpu-process holds the engines torch, but the {TITLES[name]}'s is {engine}"
            )
    vision, llm = (_device(given) for given in values.values())
    if vision != llm:
        raise StartError(
            "--one-gpu-process needs both engines on one device, but torch.device is"
            f" {vision} for the vision service and {llm} for the LLM service"
        )


def _device(values: Mapping[str, Any]) -> str:
    named = str(values.get("torch", {}).get("device", "auto"))
    return named if named != "auto" else ("cuda" if has_gpu() else "cpu")


def _values(name: str, config: Path | None) -> Mapping[str, Any]:
    """Returns what a service will find in its variables and its table of the config file."""

    class Program(EngineSettings):
        model_config = SettingsConfigDict(env_prefix=f"INTERNVL_{name.upper()}_")

        torch: _Torch = _Torch()

    # What is wrong in them the service itself will say.
    return merged(ConfigFile(Program, config, "--config").values, Environment(Program).values)
