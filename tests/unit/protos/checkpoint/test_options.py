"""Every program's option --checkpoint: a hub id is its snapshot in the local cache."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from gateway.local.settings import Settings as ServeSettings
from llm_service.engines.tensorrt_llm.build.options import BuildOptions, ConvertOptions
from llm_service.selftest import SelftestSettings as LLMSelftestSettings
from llm_service.settings import Settings as LLMSettings
from vision_service.engines.tensorrt.build import BuildSettings
from vision_service.selftest import SelftestSettings as VisionSelftestSettings
from vision_service.settings import Settings as VisionSettings

PROGRAMS: list[type[BaseModel]] = [
    ServeSettings,
    LLMSettings,
    LLMSelftestSettings,
    ConvertOptions,
    BuildOptions,
    VisionSettings,
    VisionSelftestSettings,
    BuildSettings,
]


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of lab/Tiny-2B in a cache of the test's own."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--lab--Tiny-2B" / "snapshots" / ("0a" * 20)
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__module__)
def test_a_hub_id_is_found_in_the_cache(program: type[BaseModel], snapshot: Path) -> None:
    given = {"checkpoint": "lab/Tiny-2B", "output": "o", "converted": "c"}
    names = given.keys() & program.model_fields.keys()
    settings = program.model_validate({name: given[name] for name in names})
    assert settings.model_dump()["checkpoint"] == snapshot


def test_a_snapshot_is_served_under_its_repositorys_name(snapshot: Path) -> None:
    for program in (ServeSettings, LLMSettings):
        assert program.model_validate({"checkpoint": snapshot}).model_names == ("Tiny-2B",)
