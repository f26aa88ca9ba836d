"""What all tests share: their options, how they are shared out, and logging as each finds it.

The tests of the gateway and the protos run in an environment without torch and numpy, so nothing
here may import them.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog

if TYPE_CHECKING:
    from gateway.local.stack import Stack

# Torch reads it when it is imported. The workers and the services that tests start already keep all
# cores busy: more threads for each would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHIPPED_GOLDEN_DIR = Path(__file__).parent / "data" / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir",
        type=Path,
        default=SHIPPED_GOLDEN_DIR,
        help="folder of golden data that tests/parity compares with (default: tests/data/golden)",
    )


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Says what runs on one worker, and skips, by name, what needs a CUDA device."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_cuda():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _group(item: pytest.Item) -> str:
    """Returns a test's file; of tests of several files that share processes, what they share."""
    callspec = getattr(item, "callspec", None)
    if "served" in getattr(item, "fixturenames", ()):
        return "e2e-served"
    if "shared_fleet" in getattr(item, "fixturenames", ()):
        return "fleet"
    if item.path.parent.name == "e2e" and callspec is not None and "engine" in callspec.params:
        return f"e2e-{callspec.params['engine']}"
    return str(item.path)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def readable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder from which `served` reads files."""
    return tmp_path_factory.mktemp("readable")


@pytest.fixture(scope="session")
def served(readable: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The shipped model; started once, so all its tests run on one worker."""
    from tests.served_model import served_stack

    with served_stack(readable, tmp_path_factory.mktemp("served")) as stack:
        yield stack


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    """Takes back what a program under test sets for its whole process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hooks = threading.excepthook, sys.unraisablehook
    yield
    threading.excepthook, sys.unraisablehook = hooks
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
