"""The golden folder and its checkpoints, as fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity import golden


@pytest.fixture(scope="session")
def golden_dir(pytestconfig: pytest.Config) -> Path:
    """The folder that --golden-dir names."""
    return _golden_dir(pytestconfig)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a test that asks for `checkpoint_dir` once for each checkpoint of the folder."""
    if "checkpoint_dir" in metafunc.fixturenames:
        dirs = golden.checkpoint_dirs(_golden_dir(metafunc.config))
        metafunc.parametrize(
            "checkpoint_dir", dirs, ids=[path.name for path in dirs], scope="session"
        )


def _golden_dir(config: pytest.Config) -> Path:
    path: Path = config.getoption("--golden-dir")
    if not path.is_dir():
        raise pytest.UsageError(f"--golden-dir {path} is not a folder")
    if not any(path.glob("*.json")) and not golden.checkpoint_dirs(path):
        raise pytest.UsageError(f"--golden-dir {path} holds no golden data: see its README")
    return path.resolve()
