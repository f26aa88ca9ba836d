"""--print-config: what is in effect, where it comes from, and that --config reads it back."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from pydantic import SecretStr
from pydantic_settings import SettingsConfigDict

from gateway.local.settings import Settings as ServeSettings
from gateway.settings import Settings as GatewaySettings
from llm_service.settings import ProgramSettings as LLMSettings
from protos.process.option_printing import toml
from protos.process.settings import EngineOptions, EngineSettings, Options, read_settings
from vision_service.settings import ProgramSettings as VisionSettings

STRANGE = "quotes \" ' \\ and\nlines,\ttabs, \x7f, \x01, 你好 😀"
Program = Callable[..., str]


@pytest.fixture
def print_config(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    """Starts a program with --print-config; returns what it prints."""

    def run(cls: type[Options], *words: str) -> str:
        monkeypatch.setattr("sys.argv", ["program", *words, "--print-config"])
        with pytest.raises(SystemExit) as caught:
            read_settings(cls)
        assert caught.value.code == 0
        told = capsys.readouterr()
        assert not told.err
        return told.out

    return run


class FastOptions(EngineOptions):
    """The options of an engine."""

    share: float = 0.5
    device: str | None = None


class ExactOptions(EngineOptions):
    """The options of another."""

    digits: int = 9


class Settings(EngineSettings):
    """A program with options of all types."""

    model_config = SettingsConfigDict(env_prefix="INTERNVL_LLM_")

    engine: Literal["fast", "exact"] = "fast"
    fast: FastOptions = FastOptions()
    exact: ExactOptions = ExactOptions()
    name: str = "a"
    names: tuple[str, ...] = ()
    folder: Path | None = None
    longest: float = math.inf
    api_key: SecretStr | None = None


def test_each_value_stands_with_where_it_comes_from(
    print_config: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "site.toml"
    file.write_text('[llm]\nport = 5\nname = "b"\n[llm.fast]\nshare = 0.25\n')
    monkeypatch.setenv("INTERNVL_LLM_CONFIG", str(file))
    monkeypatch.setenv("INTERNVL_LLM_NAMES", '["x", "y"]')
    monkeypatch.setenv("INTERNVL_LLM_API_KEY", "sk-not-to-be-shown")
    text = print_config(Settings, "--name", "c", "--no-reflection")
    expected = [
        "[llm]",
        '# host = "127.0.0.1"  # default',
        f"port = 5  # {file}: [llm] port",
        "# metrics_port: none  # default",
        "# drain_seconds = 30.0  # default",
        '# engine = "fast"  # default',
        "reflection = false  # --no-reflection",
        'name = "c"  # --name',
        'names = ["x", "y"]  # INTERNVL_LLM_NAMES',
        "# folder: none  # default",
        "# longest = inf  # default",
        "# api_key: a secret  # INTERNVL_LLM_API_KEY",
        "",
        "[llm.fast]",
        f"share = 0.25  # {file}: [llm] fast.share",
        "# device: none  # default",
    ]
    lines = text.splitlines()
    assert [line for line in lines if line in expected] == expected
    assert not [line for line in lines if "config" in line or "sk-not" in line]


def test_what_is_printed_says_the_same_again(
    print_config: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--name", STRANGE, "--folder", str(tmp_path), "--engine", "exact")
    text = print_config(Settings, *words, "--exact.digits", "12", "--names", '["a,b", ""]')
    (file := tmp_path / "site.toml").write_text(text)
    monkeypatch.setattr("sys.argv", ["program", "--config", str(file)])
    settings = read_settings(Settings)
    assert (settings.name, settings.folder) == (STRANGE, tmp_path)
    assert (settings.names, settings.exact.digits) == (("a,b", ""), 12)
    again = print_config(Settings, "--config", str(file))
    assert [line.partition("  # ")[0] for line in again.splitlines()] == [
        line.partition("  # ")[0] for line in text.splitlines()
    ]


@pytest.mark.parametrize("cls", [GatewaySettings, VisionSettings, LLMSettings, ServeSettings])
def test_each_program_reads_back_what_it_prints(
    print_config: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cls: type[Options]
) -> None:
    checkpoint = () if cls is GatewaySettings else ("--checkpoint", str(tmp_path))
    words = (*checkpoint, "--host", "::1", "--metrics-port", "9090")
    text = print_config(cls, *words)
    (file := tmp_path / "site.toml").write_text(text)
    monkeypatch.setattr("sys.argv", ["program", *words])
    meant = read_settings(cls).model_dump(exclude={"config"})
    monkeypatch.setattr("sys.argv", ["program", "--config", str(file)])
    assert read_settings(cls).model_dump(exclude={"config"}) == meant


def test_limits_that_others_make_useless_by_default_are_not_printed_as_wishes(
    print_config: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = print_config(GatewaySettings, "--max-body-byte-count", "100000")
    (file := tmp_path / "site.toml").write_text(text)
    monkeypatch.setattr("sys.argv", ["program", "--config", str(file)])
    settings = read_settings(GatewaySettings)
    assert settings.max_body_byte_count == 100_000 < settings.max_text_byte_count


def test_a_default_that_follows_another_option_goes_on_to(
    print_config: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = print_config(VisionSettings, "--checkpoint", str(tmp_path))
    (file := tmp_path / "site.toml").write_text(text)
    assert "reflection = true" in text
    monkeypatch.setattr("sys.argv", ["program", "--config", str(file), "--host", "0.0.0.0"])
    assert not read_settings(VisionSettings).reflection


def test_wrong_options_are_told_instead(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["program", "--print-config", "--port", "x"])
    with pytest.raises(SystemExit) as caught:
        read_settings(Settings)
    assert caught.value.code == 2
    told = capsys.readouterr()
    assert told.err.startswith("--port: ")
    assert not told.out


def test_a_value_that_toml_has_not_is_no_text() -> None:
    with pytest.raises(TypeError, match="TOML has no complex"):
        toml(1j)
