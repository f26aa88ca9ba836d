"""The images, built once, and the three services, up for all tests."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.local.ports import free_port
from tests.containers.composition import FILE, Composition, NoContainersError, Tools

SERVICE_USER = 10001


@pytest.fixture(scope="session")
def tools() -> Tools:
    """What runs containers here."""
    try:
        return Tools.find()
    except NoContainersError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def base_image(tools: Tools) -> str:
    """What the images are built on: CONTAINER_BASE, or else the Dockerfiles' own."""
    text = (FILE.parent / "gateway.Dockerfile").read_text(encoding="utf-8")
    (own,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", text, re.M)
    image = os.environ.get("CONTAINER_BASE") or own
    if not tools.has_image(image):
        pytest.skip(f"{image} is not here and cannot be pulled: CONTAINER_BASE names another base")
    return image


@pytest.fixture(scope="session")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The key with which embeddings are signed, as the head of the compose file has it made."""
    path = tmp_path_factory.mktemp("key") / "embedding.key"
    path.write_bytes(os.urandom(32))
    if os.geteuid() == 0:
        path.chmod(0o400)
        os.chown(path, SERVICE_USER, SERVICE_USER)
    return path


@pytest.fixture(scope="session")
def port() -> int:
    """Where the gateway is reached on this machine."""
    return free_port()


@pytest.fixture(scope="session")
def built(tools: Tools, base_image: str, key_file: Path, port: int) -> Composition:
    """The compose file with its images built, and nothing of it running."""
    variables = {
        "PYTHON_IMAGE": base_image,
        "EMBEDDING_KEY_FILE": str(key_file),
        "GATEWAY_PORT": str(port),
        # podman's own format of images has no health command.
        "BUILDAH_FORMAT": "docker",
    }
    composition = Composition(tools, "internvl-test", variables)
    composition.build()
    return composition


@pytest.fixture(scope="module")
def composition(built: Composition) -> Iterator[Composition]:
    """One container of each service, healthy at the start of a module."""
    with built.running():
        yield built
