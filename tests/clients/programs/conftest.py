"""What programs are told: where the servers are, their model's name, and the demo's pictures."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def toy_url() -> str:
    """The toy model's base URL as clients want it, http://HOST:PORT/v1."""
    return os.environ["INTERNVL_URL"]


@pytest.fixture(scope="session")
def perfect_url() -> str:
    """The same of a stand-in for a model that answers well and uses tools."""
    return os.environ["INTERNVL_PERFECT_URL"]


@pytest.fixture(scope="session", params=["toy", "perfect"])
def url(request: pytest.FixtureRequest) -> str:
    """Either one: what must work with any model."""
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture(scope="session")
def model() -> str:
    """The served model's name."""
    return os.environ["INTERNVL_MODEL"]


@pytest.fixture(scope="session")
def picture() -> Path:
    """A picture with a panda, a tree and a red square."""
    return Path(os.environ["INTERNVL_PICTURES"]) / "scene.png"


@pytest.fixture(scope="session")
def data_url(picture: Path) -> str:
    """The same picture as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


@pytest.fixture(scope="session")
def tables() -> Path:
    """The folder that gets a benchmark's own table of its results."""
    return Path(os.environ["INTERNVL_TABLES"])


@pytest.fixture(scope="session")
def checkpoint() -> str:
    """The toy model's folder: a benchmark counts tokens with its tokenizer."""
    return os.environ["INTERNVL_CHECKPOINT"]
