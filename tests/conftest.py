"""The options that the tests add to pytest's own."""

from __future__ import annotations

from pathlib import Path

import pytest

SHIPPED_GOLDEN_DIR = Path(__file__).parent / "data" / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir",
        type=Path,
        default=SHIPPED_GOLDEN_DIR,
        help="folder of golden data that tests/parity compares with (default: tests/data/golden)",
    )
