"""Every option of `internvl-serve`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict

from gateway.access.key_file import KeysFile
from gateway.images.folders import Folders
from protos.checkpoint.location import CheckpointFolder, model_name
from protos.process.option_errors import Contradiction
from protos.process.settings import ModelNames, Options, ServingSettings, missing_checkpoint


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _absolute_folders(folders: tuple[Path, ...]) -> tuple[Path, ...]:
    return tuple(map(_absolute, folders))


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


def default_state_folder() -> Path:
    """Returns the user's folder for logs and the like (XDG)."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "internvl"


class Settings(ServingSettings):
    """Serves a checkpoint on this machine: vision service, LLM service and gateway.

    internvl-serve OPTIONS        serves until Ctrl-C
    internvl-serve start OPTIONS  serves in the background; returns when requests are taken
    internvl-serve status         shows what runs
    internvl-serve stop           lets requests end, then stops

    These options are for all three. What only one of them should be told stands in the file of
    --config, in the tables [vision], [llm] and [gateway]; internvl-vision --help, internvl-llm
    --help and internvl-gateway --help list what these take. The options below may stand there in
    the table [serve].
    """

    model_config = SettingsConfigDict(
        env_prefix="INTERNVL_SERVE_", cli_prog_name="internvl-serve [start]"
    )

    port: int = Field(default=8000, ge=0, le=65535)
    """Port of the OpenAI API; 0 takes a free one."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Port on which Prometheus finds the gateway's metrics, at /metrics. Those of the services need
    other ports: `metrics_port` in the tables [vision] and [llm]. Default: none are served."""
    dev_tls: bool = False
    """Encrypt all connections with certificates that are made for this start: for trying out, as
    clients must be told to trust them. They are in `tls` in the state folder. Who has certificates
    gives --tls-certificate-file and --tls-key-file for the gateway, and in the tables [vision],
    [llm] and [gateway] those of the services, and the gateway's for these."""
    checkpoint: CheckpointFolder
    """Folder of an original InternVL checkpoint, or a hub id such as OpenGVLab/InternVL2_5-8B,
    which is taken from the local Hugging Face cache."""
    served_model_name: ModelNames = ()
    """Name under which the model is served; default: the checkpoint folder's name, or the hub's.
    Given several times, or as a JSON list, the others are names for it too."""
    one_gpu_process: bool = False
    """Have one process hold the engines of both services, on the GPU that they share: the vision
    tower's work and the language model's go side by side there. It ends with them, and they with
    it. Its log is engines.log. Without a GPU nothing is gained by it."""
    mps: bool = False
    """Run both services under NVIDIA's multi-process service, whose daemon is started, and ended
    with them: part of what one process gains. It needs nvidia-cuda-mps-control."""
    file_root: Annotated[Folders, AfterValidator(_absolute_folders)] = ()
    """Folder below which file:// URLs may read; may be given several times (or as a JSON list).
    None: they are refused."""
    api_keys_file: KeysFile | None = None
    """YAML file of API keys, as internvl-gateway-keys writes it: whoever calls needs one of them.
    Default: nobody needs a key. One key alone is given as the variable INTERNVL_GATEWAY_API_KEY."""
    vision_port: int = Field(default=50051, ge=0, le=65535)
    """Port of the vision service, on 127.0.0.1; if it is taken or 0, a free one."""
    llm_port: int = Field(default=50052, ge=0, le=65535)
    """Port of the LLM service, on 127.0.0.1; if it is taken or 0, a free one."""
    start_seconds: float = Field(default=1800.0, gt=0)
    """Longest time for one service to load."""
    state_folder: AbsolutePath = Field(default_factory=default_state_folder)
    """Folder of the logs, and of what status and stop have to know. Each folder serves one
    checkpoint at a time. Default: internvl in $XDG_STATE_HOME or ~/.local/state."""

    def contradictions(self) -> Iterator[Contradiction]:
        """Yields a checkpoint that is not there, two certificates, and two ways to share a GPU."""
        yield from super().contradictions()
        yield from missing_checkpoint(self.checkpoint)
        if self.dev_tls and self.tls:
            sentence = "the one makes certificates, and the other has one"
            yield Contradiction(("dev_tls", "tls_certificate_file"), sentence)
        if self.one_gpu_process and self.mps:
            sentence = "with one process there are no several for it"
            yield Contradiction(("one_gpu_process", "mps"), sentence)

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names under which the model is served, of which the first is its own."""
        return self.served_model_name or (model_name(self.checkpoint),)


class StatusSettings(Options):
    """Shows what runs: exit status 0 when all three services serve, else 1."""

    model_config = SettingsConfigDict(
        env_prefix="INTERNVL_SERVE_", cli_prog_name="internvl-serve status"
    )

    state_folder: AbsolutePath = Field(default_factory=default_state_folder)
    """Folder that internvl-serve was started with."""


class StopSettings(StatusSettings):
    """Stops the gateway and then both services; requests in flight get the time to end."""

    model_config = SettingsConfigDict(cli_prog_name="internvl-serve stop")
