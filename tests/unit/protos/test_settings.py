"""Options from the command line, the environment and a config file, and how mistakes are named."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, field_validator
from pydantic_settings import CliSubCommand, SettingsConfigDict

from protos.process.settings import (
    EngineOptions,
    EngineSettings,
    Options,
    built,
    read_settings,
)


class TorchOptions(EngineOptions):
    """The options of one engine."""

    device: Literal["cpu", "cuda"] = "cpu"


class Settings(EngineSettings):
    """A service with an engine that has options."""

    model_config = SettingsConfigDict(env_prefix="INTERNVL_LLM_")

    engine: Literal["torch", "other"] = "torch"
    torch: TorchOptions = TorchOptions()
    max_image_count: int = 64
    stop_words: tuple[str, ...] = ()

    @field_validator("stop_words")
    @classmethod
    def _not_empty(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if "" in words:
            raise ValueError("a stop word has 0 characters; it must have at least 1")
        return words


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The config file of a program without other options."""
    path = tmp_path / "site.toml"
    monkeypatch.setattr("sys.argv", ["program", "--config", str(path)])
    return path


def refusal(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Returns the lines that the program ends with, as it cannot read its options."""
    with pytest.raises(SystemExit) as caught:
        read_settings(Settings)
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()


def test_command_line_goes_before_environment_before_file_before_default(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text(
        "[gateway]\nport = 1\n"
        "[llm]\nport = 2\ndrain_seconds = 2\nmax_image_count = 2\n"
        '[llm.torch]\ndevice = "cuda"\n'
    )
    monkeypatch.setenv("INTERNVL_LLM_PORT", "3")
    monkeypatch.setenv("INTERNVL_LLM_DRAIN_SECONDS", "3")
    monkeypatch.setattr("sys.argv", ["program", "--config", str(config), "--port", "4"])
    settings = read_settings(Settings)
    assert (settings.port, settings.drain_seconds, settings.max_image_count) == (4, 3, 2)
    assert settings.torch.device == "cuda"
    assert settings.host == "127.0.0.1"


def test_the_environment_may_name_the_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("[llm]\nport = 2\n")
    monkeypatch.setenv("INTERNVL_LLM_CONFIG", str(config))
    monkeypatch.setattr("sys.argv", ["program"])
    assert read_settings(Settings).port == 2


def test_a_table_of_its_own_is_not_needed(config: Path) -> None:
    config.write_text("[gateway]\nport = 2\n")
    assert read_settings(Settings).port == 0


def test_what_is_wrong_in_a_file_is_named_with_the_file(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(
        '[llm]\nmax_image_count = "x"\nmax_image_cont = 3\nstop_words = ["a", ""]\n'
        '[llm.torch]\ndevice = "gpu"\n'
    )
    assert sorted(refusal(capsys)) == [
        f"{config}: [llm] max_image_cont: there is no such option; did you mean max_image_count?",
        f"{config}: [llm] max_image_count: Input should be a valid integer, unable to parse"
        " string as an integer; it is x",
        f"{config}: [llm] stop_words: a stop word has 0 characters; it must have at least 1",
        f"{config}: [llm] torch.device: Input should be 'cpu' or 'cuda'; it is gpu",
    ]


def test_a_wrong_item_of_a_list_in_a_file(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text("[llm]\nstop_words = [1]\n")
    assert refusal(capsys) == [
        f"{config}: [llm] stop_words.0: Input should be a valid string; it is 1"
    ]


def test_what_is_wrong_beside_a_file_is_named_as_it_is_typed(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text("[llm]\nport = 2\n")
    monkeypatch.setattr("sys.argv", ["program", "--config", str(config), "--port", "70000"])
    assert refusal(capsys) == ["--port: Input should be less than or equal to 65535; it is 70000"]


def test_option_of_an_engine_that_is_not_chosen(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text('[llm]\nengine = "other"\n[llm.torch]\ndevice = "cpu"\n')
    assert refusal(capsys) == [
        f"{config}: [llm] torch.device: an option of the engine torch, but the engine is other"
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[llm", "Expected ']'"),
        ("port = 2", "port: not one of the tables of options, [serve], [vision], [llm], [gateway]"),
        ("[lm]", "lm: not one of the tables of options"),
        ("llm = 3", "llm: not one of the tables of options"),
    ],
)
def test_files_that_hold_no_options(
    config: Path, capsys: pytest.CaptureFixture[str], text: str, sentence: str
) -> None:
    config.write_text(text)
    (line,) = refusal(capsys)
    assert line.startswith(f"{config}: {sentence}")


def test_a_file_that_does_not_exist(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys) == [f"--config: there is no file {config}"]


class Step(BaseModel):
    """The options of a subcommand."""

    item_count: int


class Program(Options):
    """The options of a program that has one."""

    tile_sizes: list[int]
    step: CliSubCommand[Step]


def test_wrong_options_are_named_as_they_are_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--tile-sizes", "1,x", "step", "--item-count", "y"]
    monkeypatch.setattr("sys.argv", ["program", *words])
    with pytest.raises(SystemExit) as caught:
        read_settings(Program)
    assert caught.value.code == 2
    of_the_list, of_the_step = capsys.readouterr().err.splitlines()
    assert of_the_list.startswith("--tile-sizes.1: Input should be a valid integer")
    assert of_the_step.startswith("--item-count: Input should be a valid integer")


def test_a_word_that_is_no_subcommand_misses_no_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["program", "--tile-sizes", "1", "stop"])
    with pytest.raises(SystemExit) as caught:
        read_settings(Program)
    assert caught.value.code == 2
    assert "--:" not in (told := capsys.readouterr().err)
    assert "invalid choice: 'stop'" in told


@pytest.mark.parametrize(
    ("words", "reflection"),
    [
        ((), True),
        (("--host", "localhost"), True),
        (("--host", "[::1]"), True),
        (("--host", "0.0.0.0"), False),
        (("--host", "::"), False),
        (("--host", "0.0.0.0", "--reflection"), True),
        (("--no-reflection",), False),
    ],
)
def test_a_server_describes_itself_to_its_own_machine_alone(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], reflection: bool
) -> None:
    monkeypatch.setattr("sys.argv", ["program", *words])
    assert read_settings(Settings).reflection is reflection


def test_settings_are_the_same_in_another_process() -> None:
    settings = built(Settings, {"drain_seconds": math.inf, "torch": {"device": "cuda"}, "port": 4})
    text = settings.model_dump_json(exclude_unset=True)
    assert built(Settings, json.loads(text)) == settings
