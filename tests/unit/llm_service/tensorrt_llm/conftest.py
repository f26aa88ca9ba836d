"""TensorRT-LLM as the double has it, for the tests of this folder alone."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tests.doubles

DOUBLES = next(iter(tests.doubles.__path__))
PACKAGES = ("tensorrt_llm", "llm_service.engines.tensorrt_llm_engine")


@pytest.fixture(autouse=True)
def bindings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module tensorrt_llm.bindings.executor, importable as if it were installed."""
    monkeypatch.syspath_prepend(DOUBLES)
    yield importlib.import_module("tensorrt_llm.bindings.executor")
    for name in [name for name in sys.modules if name.startswith(PACKAGES)]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def golden_dir(pytestconfig: pytest.Config) -> Path:
    """The folder that --golden-dir names."""
    path: Path = pytestconfig.getoption("--golden-dir")
    return path
