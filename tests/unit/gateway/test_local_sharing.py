"""How `internvl-serve` has both services share a GPU: what it starts, and what it refuses."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.local.__main__ import main, make_stack
from gateway.local.engines import LONGEST_PATH
from gateway.local.mps import PROGRAM, MultiProcessService
from gateway.local.processes import StartError
from gateway.local.record import Record
from gateway.local.settings import Settings

# Notes how it was called, and leaves a daemon's file until it is told to quit.
FAKE_PROGRAM = """#!{python}
import json, os, sys
from pathlib import Path
pipes = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
order = sys.stdin.read()
call = {{"words": sys.argv[1:], "order": order, "logs": os.environ["CUDA_MPS_LOG_DIRECTORY"]}}
assert "CUDA_VISIBLE_DEVICES" not in os.environ
with open({calls!r}, "a") as calls:
    calls.write(json.dumps(call) + "\\n")
if sys.argv[1:] == ["-d"]:
    (pipes / "control").touch(exist_ok=False)
elif order == "quit":
    (pipes / "control").unlink()
sys.exit({status})
"""


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def settings_of(folder: Path, **options: object) -> Settings:
    return Settings.model_validate(
        {"checkpoint": folder, "port": 0, "state_folder": folder, **options}
    )


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, status: int = 0) -> Path:
    """Puts the fake program in front of PATH; returns the file that notes its calls."""
    calls = folder / "calls"
    program = folder / PROGRAM
    program.write_text(
        FAKE_PROGRAM.format(python=sys.executable, calls=str(calls), status=status),
        encoding="utf-8",
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return calls


def test_both_services_are_told_of_one_host_which_starts_first(tmp_path: Path) -> None:
    stack = make_stack(settings_of(tmp_path, one_gpu_process=True))
    assert [one.name for one in stack.services] == ["engines", "vision", "llm", "gateway"]
    host, vision, llm, gateway = stack.services
    assert host.words[:2] == ["--socket", str(tmp_path / "engines.socket")]
    for service in (vision, llm):
        told = " ".join(service.words)
        assert f"--engine-process {tmp_path}/engines.socket" in told
    assert "--engine-process" not in gateway.words
    assert make_stack(settings_of(tmp_path)).engines is None


def test_a_host_is_there_when_it_listens(tmp_path: Path) -> None:
    host = make_stack(settings_of(tmp_path, one_gpu_process=True)).services[0]
    host.reserve()
    try:
        assert host.health() == "loading"
        (tmp_path / "engines.socket").touch()
        assert host.health() == "serving"
    finally:
        host.release()
    assert host.health() == "ended"


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (
            '[vision]\nengine = "tensorrt"\n',
            "--one-gpu-process holds the engines torch, but the vision service's is tensorrt",
        ),
        (
            '[llm]\nengine = "tensorrt_llm"\n',
            "--one-gpu-process holds the engines torch, but the LLM service's is tensorrt_llm",
        ),
        (
            '[llm.torch]\ndevice = "cuda"\n',
            "--one-gpu-process needs both engines on one device, but torch.device is cpu for the"
            " vision service and cuda for the LLM service",
        ),
    ],
)
def test_engines_that_cannot_share_a_process(tmp_path: Path, table: str, sentence: str) -> None:
    config = tmp_path / "site.toml"
    config.write_text(table, encoding="utf-8")
    with pytest.raises(StartError) as caught:
        make_stack(settings_of(tmp_path, one_gpu_process=True, config=config))
    assert str(caught.value) == sentence


def test_a_services_variables_win_over_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "site.toml"
    config.write_text('[llm.torch]\ndevice = "cuda"\n', encoding="utf-8")
    monkeypatch.setenv("INTERNVL_LLM_TORCH_DEVICE", "cpu")
    assert make_stack(settings_of(tmp_path, one_gpu_process=True, config=config)).engines


def test_a_path_that_is_too_long_for_a_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * LONGEST_PATH)
    with pytest.raises(StartError, match=f"--state-folder is too long .* {LONGEST_PATH} bytes"):
        make_stack(settings_of(tmp_path, one_gpu_process=True, state_folder=folder))


def test_one_process_needs_no_multi_process_service(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="one_gpu_process, mps: with one process"):
        settings_of(tmp_path, one_gpu_process=True, mps=True)


def test_the_daemon_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = install(tmp_path, monkeypatch)
    service = MultiProcessService(tmp_path / "mps")
    service.start()
    service.start()  # after one whose services were killed
    assert (tmp_path / "mps" / "control").exists()
    assert (tmp_path / "mps").stat().st_mode & 0o777 == 0o700
    service.quit()
    assert not (tmp_path / "mps" / "control").exists()
    started, ended = map(json.loads, calls.read_text().splitlines()[-2:])
    assert (started["words"], started["logs"]) == (["-d"], str(tmp_path / "mps"))
    assert (ended["words"], ended["order"]) == ([], "quit")


def test_a_program_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StartError, match=f"--mps needs {PROGRAM}, which comes with NVIDIA's"):
        MultiProcessService(tmp_path / "mps").start()
    MultiProcessService(tmp_path / "mps").quit()  # of one whose program has gone since


def test_a_daemon_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, status=1)
    with pytest.raises(StartError, match="-d did not start its daemon"):
        MultiProcessService(tmp_path / "mps").start()


def test_the_services_find_the_daemon(tmp_path: Path) -> None:
    _, *others = make_stack(settings_of(tmp_path)).services
    stack = make_stack(settings_of(tmp_path, mps=True))
    for service in (stack.vision, stack.llm):
        assert service.variables["CUDA_MPS_PIPE_DIRECTORY"] == str(tmp_path / "mps")
    assert not stack.gateway.variables
    assert not any(service.variables for service in others)


def test_stop_ends_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = install(tmp_path, monkeypatch)
    MultiProcessService(tmp_path / "mps").start()
    Record("http://127.0.0.1:1", "toy", "toy", 1.0, [], mps=True).write(tmp_path)
    monkeypatch.setattr(sys, "argv", ["", "stop", "--state-folder", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "nothing is served" in capsys.readouterr().out  # what it was for has ended before it
    assert [json.loads(line)["order"] for line in calls.read_text().splitlines()[-2:]] == [
        "",
        "quit",
    ]
