"""A client's environment: made when its pins change, below .venv-clients/."""

from __future__ import annotations

import json
import shutil
import subprocess
import venv
from pathlib import Path

from tests.clients.roster import PYTEST, Client

FOLDER = Path(__file__).parents[2] / ".venv-clients"
INSTALL_SECONDS = 1800.0


class InstallError(RuntimeError):
    """A client cannot be installed here; the message says why."""


def prepared(client: Client) -> Path:
    """Returns the folder of a client's environment, with its packages in it.

    Raises:
        InstallError: no Node.js, or a package cannot be had.
    """
    folder = FOLDER / client.name
    stamp = folder / "pins"
    pins = "\n".join(client.packages)
    if stamp.exists() and stamp.read_text(encoding="utf-8") == pins:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    (_install_node if client.is_node else _install_python)(client, folder)
    stamp.write_text(pins, encoding="utf-8")
    return folder


def _install_python(client: Client, folder: Path) -> None:
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--prefer-binary"]
    _run([*pip, *client.packages, *PYTEST])


def _install_node(client: Client, folder: Path) -> None:
    if shutil.which("npm") is None:
        raise InstallError("no npm is installed")
    folder.mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"private": True}), encoding="utf-8")
    _run(["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", *client.packages])


def _run(command: list[str]) -> None:
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise InstallError(f"the installation took longer than {INSTALL_SECONDS:g} s") from error
    if ended.returncode:
        *_, last = ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"]
        raise InstallError(last)
