"""That one start tells all that is wrong with the options, and shows no secret."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from protos.process.option_errors import Contradiction
from protos.process.settings import EngineOptions, EngineSettings, read_settings

SECRET = "sk-not-to-be-shown"


class FastOptions(EngineOptions):
    """The options of an engine."""

    device: Literal["cpu", "cuda"] = "cpu"
    sizes: tuple[int, ...] = ()


class Settings(EngineSettings):
    """The options of a program."""

    model_config = SettingsConfigDict(
        env_prefix="INTERNVL_LLM_", cli_shortcuts={"fast.device": "device"}
    )

    model: Path
    engine: Literal["fast", "exact"] = "fast"
    fast: FastOptions = FastOptions()
    least: int = Field(default=1, ge=0)
    most: int = 9
    names: tuple[str, ...] = ()
    api_key: SecretStr | None = None

    @field_validator("api_key")
    @classmethod
    def _is_long(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and len(key.get_secret_value()) < 100:
            raise ValueError("a key has at least 100 characters")
        return key

    def contradictions(self) -> Iterator[Contradiction]:
        """Yields bounds in the wrong order."""
        yield from super().contradictions()
        if self.least > self.most:
            yield Contradiction(("least", "most"), f"{self.least} is more than {self.most}")


class Attempt:
    """What a program is started with."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file = folder / "site.toml"
        self._monkeypatch = monkeypatch

    def refusal(self, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
        """Starts it with a command line; returns the lines that it ends with, sorted."""
        self._monkeypatch.setattr("sys.argv", ["program", *words])
        with pytest.raises(SystemExit) as caught:
            read_settings(Settings)
        assert caught.value.code == 2
        told = capsys.readouterr()
        assert not told.out
        return sorted(told.err.splitlines())


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attempt:
    """Nothing has been said yet."""
    return Attempt(tmp_path, monkeypatch)


def test_one_start_tells_what_is_wrong_everywhere(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt.file.write_text(
        '[lm]\nport = 1\n[llm]\nmetrics_port = "x"\nlest = 1\n[llm.fast]\nsizes = [1, "b"]\n'
    )
    monkeypatch.setenv("INTERNVL_LLM_LOG_LEVEL", "loud")
    monkeypatch.setenv("INTERNVL_LLM_NAMES", '["a"')
    monkeypatch.setenv("INTERNVL_LLM_APIKEY", SECRET)
    monkeypatch.setenv("INTERNVL_LLM_FAST_DEVISE", "cpu")
    monkeypatch.setenv("INTERNVL_LLM_BUILD_OUTPUT", "/of/another/program")
    monkeypatch.setenv("INTERNVL_LLM_MOST", "2")
    words = ("--drain-second", "3", "--port", "--device", "gpu", "--least", "3")
    assert attempt.refusal(capsys, "--config", str(attempt.file), *words) == sorted(
        [
            "--drain-second: there is no such option; did you mean --drain-seconds?",
            "--port: expected one argument",
            "--device: Input should be 'cpu' or 'cuda'; it is gpu",
            "--model: it must be given",
            "--least, INTERNVL_LLM_MOST: 3 is more than 2",
            "INTERNVL_LLM_LOG_LEVEL: Input should be 'debug', 'info', 'warning' or 'error'; it is"
            " loud",
            'INTERNVL_LLM_NAMES: Input should be a valid tuple; it is ["a"',
            "INTERNVL_LLM_APIKEY: there is no such option; did you mean INTERNVL_LLM_API_KEY?",
            "INTERNVL_LLM_FAST_DEVISE: there is no such option; did you mean device?",
            f"{attempt.file}: lm: not one of the tables of options, [serve], [vision], [llm],"
            " [gateway]",
            f"{attempt.file}: [llm] metrics_port: Input should be a valid integer, unable to parse"
            " string as an integer; it is x",
            f"{attempt.file}: [llm] lest: there is no such option; did you mean least?",
            f"{attempt.file}: [llm] fast.sizes.1: Input should be a valid integer, unable to parse"
            " string as an integer; it is b",
        ]
    )


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (("--names", '["a"'), ['--names: not a list: Missing end delimiter "]"']),
        (("--port=", "--most", "b"), []),
        (("--device", "--port"), ["--device: expected one argument"]),
        ((SECRET,), ["the command line has a word that belongs to no option"]),
        (("--api_key", SECRET), ["--api_key: there is no such option; did you mean --api-key?"]),
        (("--zzz=" + SECRET,), ["--zzz: there is no such option"]),
    ],
)
def test_what_cannot_be_read_of_the_command_line_hides_nothing_else(
    attempt: Attempt, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], lines: list[str]
) -> None:
    told = attempt.refusal(capsys, *words, "--log-format", "xml")
    assert "--log-format: Input should be 'json' or 'console'; it is xml" in told
    assert "--model: it must be given" in told
    assert set(lines) <= set(told)
    assert not any(SECRET in line for line in told)


@pytest.mark.parametrize("place", ["flag", "variable", "file", "typo"])
def test_a_secret_is_shown_from_nowhere(
    attempt: Attempt,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
) -> None:
    attempt.file.write_text("[llm]\n")
    words = ["--config", str(attempt.file), "--model", "m"]
    match place:
        case "flag":
            words += ["--api-key", SECRET]
        case "variable":
            monkeypatch.setenv("INTERNVL_LLM_API_KEY", SECRET)
        case "file":
            attempt.file.write_text(f"[llm]\napi_key = {json.dumps([SECRET])}\n")
        case "typo":
            attempt.file.write_text(f"[llm]\napi_kee = {json.dumps(SECRET)}\n")
    (line,) = attempt.refusal(capsys, *words)
    assert "key: " in line.lower() or "api_kee: " in line
    assert SECRET not in line


def test_a_long_value_is_cut_off(attempt: Attempt, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = attempt.refusal(capsys, "--model", "m", "--port", "7" * 5000)
    assert line.startswith("--port: ")
    assert len(line) < 400


def test_options_are_not_compared_with_one_that_is_wrong(
    attempt: Attempt, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--model", "m", "--least", "99", "--most", "x", "--fast.sizes", "1")
    told = attempt.refusal(capsys, *words, "--engine", "quick")
    assert [line.partition(":")[0] for line in told] == ["--engine", "--most"]


def test_options_that_are_right_by_themselves_are_compared_beside_others_that_are_not(
    attempt: Attempt, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--engine", "exact", "--fast.sizes", "1", "--device", "cpu", "--port", "x")
    assert attempt.refusal(capsys, *words) == [
        "--device: an option of the engine fast, but the engine is exact",
        "--fast.sizes: an option of the engine fast, but the engine is exact",
        "--model: it must be given",
        "--port: Input should be a valid integer, unable to parse string as an integer; it is x",
    ]


def test_two_servers_do_not_share_a_port(
    attempt: Attempt, capsys: pytest.CaptureFixture[str]
) -> None:
    told = attempt.refusal(capsys, "--model", "m", "--port", "7", "--metrics-port", "7")
    assert told == ["--port, --metrics-port: both are 7"]


def test_an_unreadable_file_hides_nothing_else(
    attempt: Attempt, capsys: pytest.CaptureFixture[str]
) -> None:
    told = attempt.refusal(capsys, "--config", str(attempt.file), "--port", "x")
    assert told[0] == f"--config: there is no file {attempt.file}"
    assert [line.partition(":")[0] for line in told[1:]] == ["--model", "--port"]


def test_a_file_says_neither_which_file_to_read_nor_to_print_and_end(
    attempt: Attempt, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt.file.write_text('[llm]\nmodel = "m"\nconfig = "other.toml"\nprint_config = true\n')
    assert attempt.refusal(capsys, "--config", str(attempt.file)) == [
        f"{attempt.file}: [llm] {name}: it is for the command line or a variable"
        for name in ("config", "print_config")
    ]


def test_a_slip_in_a_programs_name_is_told_and_others_variables_are_not(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INTERNVL_LM_API_KEY", SECRET)
    monkeypatch.setenv("INTERNVL_VISION_METRICS_PORT", "1")
    monkeypatch.setenv("INTERNVL_GATEWAY_API_KEY", SECRET)
    monkeypatch.setenv("INTERNVL_DEMO_PORT", "1")
    assert attempt.refusal(capsys, "--model", "m") == [
        "INTERNVL_LM_API_KEY: there is no such option; did you mean INTERNVL_LLM_API_KEY?"
    ]
