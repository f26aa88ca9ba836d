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

import tests.doubles
from llm_service import doctor
from llm_service.doctor import Machine, Trial, engine_builder, tensorrt_llm_engine, torch_engine
from llm_service.engines.tensorrt_llm.build import engine as engine_build
from llm_service.settings import Settings
from tests.fake_libraries import write_library, write_program

DOUBLES = next(iter(tests.doubles.__path__))
H100 = "NVIDIA H100 80GB HBM3, compute capability 9.0, 79.2 GiB"
NO_EXECUTOR = "TensorRT-LLM 1.4.0 has no tensorrt_llm.bindings.executor.Executor"

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
    *gpus: str, failure: str = "", refusal: str = "", programs: tuple[str, ...] = ("trtllm-build",)
) -> Machine:
    paths = {name: name if name in programs else None for name in (doctor.BUILDER, doctor.MPI)}
    torch_trial = Trial(("CUDA 13.0", *gpus), failure)
    return Machine(Trial(("590.44.01",)), torch_trial, Trial(failure=refusal), paths)


def test_a_machine_without_tensorrt_llm_runs_the_torch_engine(folder: Path, run: Run) -> None:
    write_library(folder, "tensorrt_llm", "1.2.1", "raise ImportError('libmpi.so.40: not found')")
    write_program(folder, "nvidia-smi", "exit 9")
    status, lines = run()
    assert status == 0
    assert f"Python {platform.python_version()}" in lines
    assert f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}" in lines
    assert "NVIDIA driver not found (exit status 9)" in lines
    assert "GPU none that PyTorch finds" in lines
    assert "tensorrt_llm 1.2.1" in lines
    assert "Executor no" in lines
    assert "engine torch yes, on the CPU" in lines
    position = lines.index("engine tensorrt_llm no")
    assert lines[position + 1] == f"- {doctor.NO_GPU}"
    assert "cannot be imported (libmpi.so.40: not found); 1.2.1 is supported" in lines[position + 2]
    assert lines[position + 2].endswith(doctor.INSTALL_TENSORRT_LLM)


def test_the_executor_and_the_programs_are_found(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{DOUBLES}")
    write_program(folder, "nvidia-smi", "echo 590.44.01; echo 590.44.01")
    for name in (doctor.BUILDER, doctor.MPI):
        write_program(folder, name, "")
    status, lines = run("--engine", "tensorrt_llm")
    assert status == 1
    assert "NVIDIA driver 590.44.01" in lines
    assert "Executor yes" in lines
    assert f"trtllm-build {folder}/trtllm-build" in lines
    assert f"mpirun {folder}/mpirun" in lines
    assert lines[lines.index("engine tensorrt_llm no") :] == [
        "engine tensorrt_llm no",
        f"- {doctor.NO_GPU}",
        "building engines no",
        f"- {doctor.NO_GPU}",
    ]


def test_what_the_torch_engine_lacks_is_a_finding(folder: Path, run: Run) -> None:
    write_library(folder, "llguidance", "1.9.1", "import os\nos.kill(os.getpid(), 9)")
    status, lines = run()
    assert status == 1
    assert f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}" in lines
    gap = "- exit status -9: pip install 'internvl-serving[torch]'"
    assert lines[lines.index("engine torch no") + 1] == gap


def test_broken_libraries_are_findings(folder: Path, run: Run) -> None:
    write_library(folder, "torch", "2.9.1", "raise OSError('libcudart.so.13: no such file')")
    write_library(folder, "tensorrt_llm", "1.2.1", "import os\nos.kill(os.getpid(), 9)")
    status, lines = run()
    assert status == 1
    assert "torch 2.9.1" in lines
    gap = "- OSError: libcudart.so.13: no such file: pip install 'internvl-serving[torch]'"
    assert lines[lines.index("engine torch no") + 1] == gap
    assert f"- exit status -9: {doctor.INSTALL_TENSORRT_LLM}" in lines


def test_the_engine_that_is_wanted_decides_the_exit_status(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = get_args(Settings.model_fields["engine"].annotation)
    monkeypatch.setattr(Machine, "examine", machine)
    assert [run("--engine", engine)[0] for engine in engines] == [0, 1]
    monkeypatch.setenv("INTERNVL_LLM_ENGINE", "tensorrt_llm")
    status, lines = run()
    assert status == 1
    assert all(f"engine {engine}" in "\n".join(lines) for engine in engines)


def test_the_doctor_itself_imports_no_library() -> None:
    program = "import sys, llm_service.doctor; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_program_that_does_not_end_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TRIAL_SECONDS", 0.1)
    program = "import signal; signal.pause()"
    assert "timed out after 0.1 seconds" in Trial.of(sys.executable, "-c", program).failure


def test_the_builder_is_the_one_that_the_build_calls() -> None:
    assert doctor.BUILDER == engine_build.PROGRAM


def test_a_machine_that_runs_tensorrt_llm() -> None:
    found = machine(H100, programs=("trtllm-build", "mpirun"))
    assert torch_engine(found) == doctor.Answer("on the GPU, or on the CPU")
    assert tensorrt_llm_engine(found) == doctor.Answer("on one GPU, and on several by mpirun")
    assert engine_builder(found) == doctor.Answer("by trtllm-build, for this GPU")


def test_several_gpus_need_mpirun() -> None:
    answer = tensorrt_llm_engine(machine(H100))
    assert answer.gaps == ()
    assert "several need mpirun" in answer.how


def test_a_version_without_the_executor() -> None:
    (gap,) = tensorrt_llm_engine(machine(H100, refusal=NO_EXECUTOR)).gaps
    assert gap == f"{NO_EXECUTOR}: {doctor.INSTALL_TENSORRT_LLM}"


def test_without_pytorch_nothing_runs() -> None:
    found = machine(H100, failure="No module named 'torch'")
    for answer, extra in ((torch_engine(found), "torch"), (tensorrt_llm_engine(found), "models")):
        gap = f"No module named 'torch': pip install 'internvl-serving[{extra}]'"
        assert answer.gaps == (gap,)


def test_engines_need_the_builder() -> None:
    (gap,) = engine_builder(machine(H100, programs=())).gaps
    assert gap == "trtllm-build is not on the PATH; it comes with tensorrt_llm 1.2.1"


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch as it would be with an H100."""
    gpu = SimpleNamespace(name="H100", major=9, minor=0, total_memory=80 * 2**30)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: gpu)


def test_the_gpus_are_those_of_pytorch(
    one_gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (programs,) = doctor.CUDA_ENGINE
    monkeypatch.setitem(sys.modules, programs, ModuleType(programs))
    doctor.try_torch()
    expected = ["CUDA 13.0", "H100, compute capability 9.0, 80.0 GiB"]
    assert capsys.readouterr().out.splitlines() == expected


def test_on_a_gpu_the_torch_engine_needs_triton(
    one_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, *doctor.CUDA_ENGINE, None)
    with pytest.raises(ModuleNotFoundError, match="triton_programs"):
        doctor.try_torch()
