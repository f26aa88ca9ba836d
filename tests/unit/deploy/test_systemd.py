"""The systemd units: that programs take what they are started with, and what systemd says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.settings import Settings as GatewaySettings
from llm_service.settings import ProgramSettings as LLMSettings
from protos.process.settings import GrpcSettings, ServingSettings, read_settings
from vision_service.settings import ProgramSettings as VisionSettings

FOLDER = Path(__file__).parents[3] / "deploy" / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
SETTINGS: dict[str, type[ServingSettings]] = {
    "internvl-gateway": GatewaySettings,
    "internvl-vision": VisionSettings,
    "internvl-llm": LLMSettings,
}
Section = dict[str, list[str]]


def read(unit: Path) -> dict[str, Section]:
    """Returns a unit's sections; a key may be there several times."""
    sections: dict[str, Section] = {}
    section: Section = {}
    for line in unit.read_text().splitlines():
        if heading := re.fullmatch(r"\[(\w+)\]", line):
            section = sections[heading[1]] = defaultdict(list)
        elif line and not line.startswith("#"):
            key, is_there, value = line.partition("=")
            assert is_there, line
            section[key].append(value)
    return sections


def service(unit: Path) -> Section:
    """Returns what is run."""
    return read(unit)["Service"]


def only(values: list[str]) -> str:
    """Returns the one value that there is."""
    (value,) = values
    return value


def variables(unit: Path, credentials: Path) -> Iterator[tuple[str, str]]:
    """Yields the environment, with a folder in place of the unit's credentials and cache."""
    for line in service(unit)["Environment"]:
        for word in line.split():
            name, _, value = word.partition("=")
            yield name, value.replace("%d", str(credentials)).replace("%C", str(credentials))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.stem))
def test_a_program_takes_what_its_unit_says(
    unit: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    program, *words = only(service(unit)["ExecStart"]).split()
    assert Path(program).name == unit.stem
    (checkpoint := tmp_path / "InternVL2_5-8B").mkdir()
    (file := tmp_path / "internvl.toml").write_text(
        (FOLDER / "internvl.toml").read_text().replace("/srv/models", str(tmp_path))
    )
    (tmp_path / "embedding.key").write_bytes(bytes(32))
    for name, value in variables(unit, tmp_path):
        monkeypatch.setenv(name, value)
    assert words == ["--config", "/etc/internvl/internvl.toml"]
    monkeypatch.setattr(sys, "argv", [program, "--config", str(file), "--print-config"])
    with pytest.raises(SystemExit) as caught:
        read_settings(SETTINGS[unit.stem])
    told = capsys.readouterr()
    assert (caught.value.code, told.err) == (0, "")
    if unit.stem != "internvl-gateway":
        assert f'\ncheckpoint = "{checkpoint}"  # {file}: ' in told.out
        assert f'\nembedding_key_file = "{tmp_path}/embedding.key"  # INTERNVL_' in told.out


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.stem))
def test_a_drain_ends_before_systemd_kills(unit: Path) -> None:
    fields = SETTINGS[unit.stem].model_fields
    drain = fields["drain_seconds"].default
    if issubclass(SETTINGS[unit.stem], GrpcSettings):
        drain += fields["drain_notice_seconds"].default
    assert int(only(service(unit)["TimeoutStopSec"])) > drain + 10


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.stem))
def test_a_unit_waits_for_word_and_is_hardened(unit: Path) -> None:
    what = service(unit)
    assert only(what["Type"]) == "notify"
    assert only(what["ExecReload"]) == "/bin/kill -HUP $MAINPID"
    assert only(what["Restart"]) == "on-failure"
    assert only(what["RestartPreventExitStatus"]) == "2"
    assert int(only(what["WatchdogSec"])) > 0
    assert only(what["CapabilityBoundingSet"]) == ""
    assert only(what["NoNewPrivileges"]) == "yes"
    assert only(what["ProtectSystem"]) == "strict"
    assert only(what["SystemCallFilter"]) == "@system-service"


def test_the_services_are_one_user_and_the_gateway_is_another() -> None:
    users = {unit.stem: only(service(unit)["User"]) for unit in UNITS}
    assert users["internvl-vision"] == users["internvl-llm"] != users["internvl-gateway"]
    made = re.findall(r"^u (\S+)", (FOLDER / "internvl.sysusers.conf").read_text(), re.MULTILINE)
    assert set(made) == set(users.values())


def test_the_target_starts_all() -> None:
    wanted = only(read(FOLDER / "internvl.target")["Unit"]["Wants"]).split()
    assert sorted(wanted) == [unit.name for unit in UNITS]
    for unit in UNITS:
        assert read(unit)["Unit"]["PartOf"] == ["internvl.target"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.stem))
def test_systemd_finds_nothing_wrong(unit: Path, tmp_path: Path) -> None:
    (program := tmp_path / unit.stem).write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace(f"/opt/internvl/bin/{unit.stem}", str(program)))
    for other in FOLDER.iterdir():
        if other.suffix in (".service", ".target") and other.name != unit.name:
            text = other.read_text().replace("/opt/internvl/bin/", f"{program} #")
            (tmp_path / other.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
