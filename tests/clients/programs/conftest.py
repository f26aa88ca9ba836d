"""What every program is told: where the server is, its model's name, and the demo's pictures."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def url() -> str:
    """The base URL as clients want it, http://HOST:PORT/v1."""
    return os.environ["INTERNVL_URL"]


@pytest.fixture(scope="session")
def model() -> str:
    """The served model."""
    return os.environ["INTERNVL_MODEL"]


@pytest.fixture(scope="session")
def picture() -> Path:
    """A picture with a panda, a tree and a red square."""
    return Path(os.environ["INTERNVL_PICTURES"]) / "scene.png"


@pytest.fixture(scope="session")
def data_url(picture: Path) -> str:
    """The same picture as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
