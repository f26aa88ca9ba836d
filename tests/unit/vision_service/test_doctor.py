"""The doctor: what it finds on this machine, on broken ones, and what follows on others."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import get_args

import pytest
import torch

from tests.fake_libraries import write_library, write_program
from vision_service import doctor
from vision_service.doctor import Machine, Trial, plan_builder, tensorrt_engine, torch_engine
from vision_service.settings import Settings

H100 = "NVIDIA H100 80GB HBM3, compute capability 9.0, 79.2 GiB"
RTX_4090 = "NVIDIA GeForce RTX 4090, compute capability 8.9, 23.5 GiB"
FOUND = Trial()
MISSING = Trial(failure="ModuleNotFoundError: No module named 'it'")

Run = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that comes first on the path of Python and on that of programs."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    return tmp_path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the program; returns its exit status and its lines, each with single blanks."""

    def run_program(*words: str) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["", *words])
        with pytest.raises(SystemExit) as ended:
            doctor.main()
        assert isinstance(ended.value.code, int)
        lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        return ended.value.code, lines

    return run_program


def machine(
    *gpus: str, has: tuple[str, ...] = ("tensorrt", "tensorrt_rtx", "onnx"), failure: str = ""
) -> Machine:
    libraries = {name: FOUND if name in has else MISSING for name in doctor.LIBRARIES}
    return Machine(Trial(("590.44.01",)), Trial(("CUDA 13.0", *gpus), failure), libraries)


def test_a_machine_without_a_gpu_runs_the_torch_engine(folder: Path, run: Run) -> None:
    write_program(folder, "nvidia-smi", "exit 9")
    write_library(folder, "tensorrt", "10.14.1", "")
    status, lines = run()
    assert status == 0
    assert f"Python {platform.python_version()}" in lines
    assert f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}" in lines
    assert "NVIDIA driver not found (exit status 9)" in lines
    assert "GPU none that PyTorch finds" in lines
    assert "tensorrt 10.14.1" in lines
    assert "engine torch yes, on the CPU" in lines
    assert lines[lines.index("engine tensorrt no") + 1] == f"- {doctor.NO_GPU}"


def test_broken_libraries_are_findings(folder: Path, run: Run) -> None:
    write_program(folder, "nvidia-smi", "echo 590.44.01; echo 590.44.01")
    missing = "OSError('libnvinfer.so.10: cannot open shared object file')"
    write_library(folder, "tensorrt", "10.14.1", f"raise {missing}")
    write_library(folder, "tensorrt_rtx", "1.4.0", "import os\nos.kill(os.getpid(), 9)")
    write_library(folder, "onnx", "1.18.0", "import no_such_library")
    write_library(folder, "PIL", "11.0", "import os\nos.kill(os.getpid(), 9)")
    status, lines = run()
    assert status == 1
    assert "NVIDIA driver 590.44.01" in lines
    assert f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}" in lines
    pillow = "- exit status -9: pip install 'internvl-serving[torch]'"
    assert lines[lines.index("engine torch no") :] == [
        "engine torch no",
        pillow,
        "engine tensorrt no",
        pillow,
        f"- {doctor.NO_GPU}",
        "- tensorrt cannot be imported (OSError: libnvinfer.so.10: cannot open shared object file):"
        " pip install 'tensorrt>=10.13'",
        "building plans no",
        pillow,
        "- onnx cannot be imported (ModuleNotFoundError: No module named 'no_such_library'):"
        " pip install 'internvl-serving[build]'",
        "- tensorrt builds for the GPU in its machine, and tensorrt_rtx cannot be imported"
        " (exit status -9): pip install tensorrt_rtx",
    ]


def test_a_broken_pytorch_is_a_finding(folder: Path, run: Run) -> None:
    write_library(folder, "torch", "2.9.0", "raise OSError('libcudart.so.13: no such file')")
    status, lines = run()
    assert status == 1
    assert "torch 2.9.0" in lines
    gap = "- OSError: libcudart.so.13: no such file: pip install 'internvl-serving[torch]'"
    assert lines[lines.index("engine torch no") + 1] == gap


def test_the_engine_that_is_wanted_decides_the_exit_status(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = get_args(Settings.model_fields["engine"].annotation)
    found = machine(has=("tensorrt_rtx", "onnx"))
    monkeypatch.setattr(Machine, "examine", lambda: found)
    assert [run("--engine", engine)[0] for engine in engines] == [0, 1]
    monkeypatch.setenv("INTERNVL_VISION_ENGINE", "tensorrt")
    status, lines = run()
    assert status == 1
    assert all(f"engine {engine}" in "\n".join(lines) for engine in engines)


def test_the_doctor_itself_imports_no_library() -> None:
    program = "import sys, vision_service.doctor; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_program_that_does_not_end_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TRIAL_SECONDS", 0.1)
    program = "import signal; signal.pause()"
    assert "timed out after 0.1 seconds" in Trial.of(sys.executable, "-c", program).failure


@pytest.mark.parametrize(
    ("found", "how"),
    [
        (machine(H100), "plans of tensorrt and tensorrt_rtx"),
        (machine(H100, has=("tensorrt",)), "plans of tensorrt"),
        (machine(RTX_4090, has=("tensorrt_rtx",)), "plans of tensorrt_rtx"),
    ],
)
def test_a_machine_that_runs_plans(found: Machine, how: str) -> None:
    assert tensorrt_engine(found) == doctor.Answer(how)
    assert torch_engine(found) == doctor.Answer("on the GPU, or on the CPU")


def test_tensorrt_rtx_does_not_run_on_an_h100() -> None:
    (gap,) = tensorrt_engine(machine(H100, has=("tensorrt_rtx",))).gaps
    assert gap.startswith("tensorrt_rtx makes plans for GPUs of compute capability 8.6, 8.9, 12.0,")
    assert gap.endswith("not for this one: pip install 'tensorrt>=10.13'")


def test_a_gpu_without_tensorrt() -> None:
    (gap,) = tensorrt_engine(machine(RTX_4090, has=())).gaps
    assert gap == f"tensorrt cannot be imported ({MISSING.failure}): pip install 'tensorrt>=10.13'"


def test_without_pytorch_nothing_runs() -> None:
    found = machine(H100, failure="No module named 'torch'")
    for answer in (torch_engine(found), tensorrt_engine(found), plan_builder(found)):
        assert answer.gaps == ("No module named 'torch': pip install 'internvl-serving[torch]'",)


@pytest.mark.parametrize(
    ("found", "how"),
    [
        (machine(H100), "by tensorrt, for this GPU"),
        (machine(), "by tensorrt_rtx, also without a GPU; they run on GPUs of compute capability"),
        (machine(H100, has=("tensorrt_rtx", "onnx")), "by tensorrt_rtx, also without a GPU"),
    ],
)
def test_a_machine_that_builds_plans(found: Machine, how: str) -> None:
    answer = plan_builder(found)
    assert answer.how.startswith(how)
    assert answer.gaps == ()


@pytest.mark.parametrize(
    ("found", "gap"),
    [
        (machine(has=("tensorrt", "onnx")), "tensorrt builds for the GPU in its machine, and"),
        (machine(H100, has=("onnx",)), "tensorrt builds for the GPU in its machine, and"),
        (machine(H100, has=("tensorrt",)), "onnx cannot be imported"),
        (machine(has=("tensorrt_rtx",)), "onnx cannot be imported"),
    ],
)
def test_a_machine_that_builds_no_plans(found: Machine, gap: str) -> None:
    (only,) = plan_builder(found).gaps
    assert only.startswith(gap)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch as it would be with an RTX 4090 and an H100."""
    gpus = [
        SimpleNamespace(name="RTX 4090", major=8, minor=9, total_memory=24 * 2**30),
        SimpleNamespace(name="H100", major=9, minor=0, total_memory=80 * 2**30),
    ]
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(gpus))
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: gpus[index])


def test_the_gpus_are_those_of_pytorch(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (programs,) = doctor.CUDA_ENGINE
    monkeypatch.setitem(sys.modules, programs, ModuleType(programs))
    doctor.try_torch()
    lines = tuple(capsys.readouterr().out.splitlines())
    assert lines == (
        "CUDA 13.0",
        "RTX 4090, compute capability 8.9, 24.0 GiB",
        "H100, compute capability 9.0, 80.0 GiB",
    )
    libraries = dict.fromkeys(doctor.LIBRARIES, MISSING) | {"tensorrt_rtx": FOUND}
    assert tensorrt_engine(Machine(FOUND, Trial(lines), libraries)).gaps == ()


def test_on_a_gpu_the_torch_engine_needs_triton(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, *doctor.CUDA_ENGINE, None)
    with pytest.raises(ModuleNotFoundError, match="triton_programs"):
        doctor.try_torch()
