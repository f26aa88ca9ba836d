"""The engine of docs/adding-an-engine.md: its code runs as it stands there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typing_extensions import get_protocol_members

from vision_service.checkpoint import VisionConfig
from vision_service.engines.base import VisionEngine

ROOT = Path(__file__).parents[4]
PAGE = ROOT / "docs" / "adding-an-engine.md"
CHECKPOINT = ROOT / "models" / "demo" / "checkpoint"


@pytest.fixture
def engine(tmp_path: Path) -> Any:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    file = tmp_path / "engine.py"
    file.write_text(code)
    spec = importlib.util.spec_from_file_location("echo_engine", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EchoEngine(VisionConfig.from_checkpoint(CHECKPOINT))


def test_it_has_all_that_an_engine_promises(engine: Any) -> None:
    assert [name for name in get_protocol_members(VisionEngine) if not hasattr(engine, name)] == []


def test_it_answers_with_zeros(engine: Any) -> None:
    tiles = torch.ones(2, 3, 28, 28, dtype=torch.uint8)
    batch = engine.submit([tiles, tiles[:1]])
    assert [part.shape[0] for part in batch.wait()] == [2, 1]
    assert not any(part.any() for part in batch.wait())
    assert batch.are_finite() == [True, True]
