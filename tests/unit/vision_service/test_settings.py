"""The settings: flags, environment, bounds, and what the process says about a wrong one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_settings import CliApp

from llm_service.settings import TorchOptions as LLMTorchOptions
from protos.process.cores import usable_core_count
from tests.unit.vision_service.checkpoints import SMALL_6B, write_checkpoint
from tests.unit.vision_service.fakes import FakeEngine
from vision_service.__main__ import main, model_info
from vision_service.checkpoint import VisionConfig
from vision_service.settings import Settings, TorchOptions


def test_flags_and_environment_fill_the_same_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNVL_VISION_MAX_TILE_COUNT", "24")
    settings = CliApp.run(Settings, cli_args=["--checkpoint", "b", "--port", "7"])
    assert (settings.port, settings.max_tile_count) == (7, 24)
    assert settings.checkpoint == Path.cwd() / "b"


def test_the_default_of_threads_is_all_cores() -> None:
    assert TorchOptions().thread_count == LLMTorchOptions().thread_count == usable_core_count()


def test_an_engines_options_are_flags_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNVL_VISION_TORCH_THREAD_COUNT", "3")
    settings = CliApp.run(Settings, cli_args=["--checkpoint", "a", "--torch.device", "cpu"])
    assert (settings.torch.thread_count, settings.torch.device) == (3, "cpu")
    monkeypatch.delenv("INTERNVL_VISION_TORCH_THREAD_COUNT")
    monkeypatch.setenv("INTERNVL_VISION_TENSORRT_PLAN", "p")
    settings = CliApp.run(Settings, cli_args=["--checkpoint", "a", "--engine", "tensorrt"])
    assert settings.tensorrt.plan == Path.cwd() / "p"


def test_transparency_is_part_of_the_recipe(tmp_path: Path) -> None:
    config = VisionConfig.from_checkpoint(write_checkpoint(tmp_path))
    recipes = {
        model_info(
            CliApp.run(Settings, cli_args=["--checkpoint", str(tmp_path), *arguments]),
            config,
            FakeEngine(),
        ).recipe_sha256
        for arguments in ([], ["--transparency", "white"], ["--transparency", "drop"])
    }
    assert len(recipes) == 2


def test_settings_are_frozen() -> None:
    settings = Settings(checkpoint=Path("a"))
    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 1  # type: ignore[misc]  # that mypy refuses it too is the point


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "--checkpoint: it must be given"),
        (["--max-tile-count", "0"], "--max-tile-count: Input should be greater"),
        (["--torch.dtype", "int8"], "--torch.dtype: Input should be 'auto'"),
        (["--torch.thread-count", "0"], "--torch.thread-count: Input should be greater"),
        (["--max-call-count", str(10**30)], "--max-call-count: Input should be less"),
        (["--max-image-byte-count", str(2**31)], "--max-image-byte-count: Input should be less"),
        (["--max-batch-tile-count", str(10**12)], "--max-batch-tile-count: Input should be less"),
        (["--max-queued-tile-count", "64"], "--max-queued-tile-count: Input should be"),
        (["--engine", "tensorrt"], "--tensorrt.plan: the engine tensorrt needs one"),
        (
            ["--max-batch-tile-count", "70", "--max-queued-tile-count", "69"],
            "--max-batch-tile-count, --max-queued-tile-count: no batch is full",
        ),
        (
            ["--tensorrt.plan", "p"],
            "--tensorrt.plan: an option of the engine tensorrt, but",
        ),
        (
            ["--engine", "tensorrt", "--tensorrt.plan", "p", "--torch.dtype", "float32"],
            "--torch.dtype: an option of the engine torch, but",
        ),
    ],
)
def test_a_wrong_option_is_named_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    complaint: str,
) -> None:
    checkpoint = ["--checkpoint", "a"] if arguments else []
    monkeypatch.setattr(sys, "argv", ["internvl-vision", *checkpoint, *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(complaint)


@pytest.mark.parametrize(
    ("is_dynamic", "max_tile_count", "default", "largest"),
    [(True, None, 6, 6), (True, 24, 6, 24), (True, 2, 2, 2), (False, None, 1, 6)],
)
def test_tile_caps_follow_the_checkpoint_and_the_setting(
    tmp_path: Path, is_dynamic: bool, max_tile_count: int | None, default: int, largest: int
) -> None:
    document = {**SMALL_6B, "dynamic_image_size": is_dynamic}
    settings = Settings(
        checkpoint=write_checkpoint(tmp_path / "Tiny", document), max_tile_count=max_tile_count
    )
    config = VisionConfig.from_checkpoint(settings.checkpoint)
    info = model_info(settings, config, FakeEngine())
    assert (info.default_tile_count, info.max_tile_count) == (default, largest)
    assert (info.model, info.hidden_size, info.tokens_per_tile) == ("Tiny", 24, 4)
