"""NVIDIA's multi-process service, which has the kernels of several processes on a GPU at a time."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from gateway.local.processes import StartError

PROGRAM = "nvidia-cuda-mps-control"
CONTROL_SECONDS = 30.0


class MultiProcessService:
    """A daemon of the user's own, with its pipes and logs in a folder.

    The GPU stays in its compute mode: other processes use it without the daemon, as before.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def variables(self) -> Mapping[str, str]:
        """Those by which a process finds the daemon."""
        return {
            "CUDA_MPS_PIPE_DIRECTORY": str(self._folder),
            "CUDA_MPS_LOG_DIRECTORY": str(self._folder),
        }

    def start(self) -> None:
        """Starts the daemon, which is there when this returns.

        Raises:
            StartError: its program is not installed, or refuses.
        """
        if shutil.which(PROGRAM) is None:
            raise StartError(
                f"--mps needs {PROGRAM}, which comes with NVIDIA's driver and is in no folder of"
                " PATH"
            )
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self.quit()  # one whose services were killed
        try:
            self._control("-d", check=True)
        except (subprocess.SubprocessError, OSError) as error:
            raise StartError(f"{PROGRAM} -d did not start its daemon: {error}") from error

    def quit(self) -> None:
        """Ends the daemon; its clients have ended."""
        try:
            self._control(order="quit")
        except (subprocess.SubprocessError, OSError):
            return  # it has gone, or its program has

    def _control(self, *arguments: str, order: str = "", check: bool = False) -> None:
        # The daemon numbers those GPUs anew that it is restricted to; its clients, which have the
        # same variable, choose among these numbers.
        variables = {**os.environ, **self.variables}
        variables.pop("CUDA_VISIBLE_DEVICES", None)
        subprocess.run(  # noqa: S603 - NVIDIA's program, with our own words
            [PROGRAM, *arguments],
            input=order,
            env=variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=CONTROL_SECONDS,
            check=check,
            text=True,
        )
