"""TensorRT-LLM as the double has it, for the tests of this folder alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.llm_service.engines.tensorrt_llm.double import installed_double


@pytest.fixture(autouse=True)
def bindings() -> Iterator[Any]:
    """The module tensorrt_llm.bindings.executor, importable as if it were installed."""
    with installed_double() as executor:
        yield executor


@pytest.fixture(scope="session")
def golden_dir(pytestconfig: pytest.Config) -> Path:
    """The folder that --golden-dir names."""
    path: Path = pytestconfig.getoption("--golden-dir")
    return path
