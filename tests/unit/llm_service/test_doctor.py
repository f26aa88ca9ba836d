"""The doctor: what it finds on this machine, on broken ones, and what follows on others."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from llm_service import doctor
from llm_service.engines.tensorrt_llm.build import engine as engine_build
from llm_service.engines.tensorrt_llm.doctor import (
    BUILDER,
    INSTALL,
    LIBRARY,
    MPI,
    engine_builder,
    tensorrt_llm_engine,
)
from protos.process.doctor import NO_GPU, Answer, Machine, Trial, torch_engine
from tests.fake_libraries import (
    KILLS_ITS_PROCESS,
    TORCH_WITHOUT_CUDA,
    write_library,
    write_program,
)
from tests.unit.conftest import RunDoctor

H100 = "NVIDIA H100 80GB HBM3, compute capability 9.0, 79.2 GiB"
NO_EXECUTOR = "TensorRT-LLM 1.4.0 has no tensorrt_llm.bindings.executor.Executor"


def machine(
    *gpus: str, failure: str = "", refusal: str = "", programs: tuple[str, ...] = (BUILDER,)
) -> Machine:
    paths = {name: name if name in programs else None for name in (BUILDER, MPI)}
    torch_trial = Trial(("CUDA 13.0", *gpus), failure)
    return Machine(Trial(("590.44.01",)), torch_trial, {LIBRARY: Trial(failure=refusal)}, paths)


def write_tensorrt_llm(folder: Path) -> None:
    """Writes as much of TensorRT-LLM as an installation is checked for."""
    write_library(folder, "tensorrt_llm", "1.2.1", "__version__ = '1.2.1'")
    bindings = folder / "tensorrt_llm" / "bindings"
    bindings.mkdir()
    (bindings / "__init__.py").touch()
    (bindings / "executor.py").write_text("class Executor: ...", encoding="utf-8")


def test_what_is_there_is_found(installation: Path, run_doctor: RunDoctor) -> None:
    write_tensorrt_llm(installation)
    write_program(installation, "nvidia-smi", "echo 590.44.01; echo 590.44.01")
    for name in (BUILDER, MPI):
        write_program(installation, name, "")
    status, lines = run_doctor(doctor.main, "--engine", "tensorrt_llm")
    assert status == 1
    assert f"Python {platform.python_version()}" in lines
    assert f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}" in lines
    assert "NVIDIA driver 590.44.01" in lines
    assert "GPU none that PyTorch finds" in lines
    assert "tensorrt_llm 1.2.1" in lines
    assert "Executor yes" in lines
    assert f"trtllm-build {installation}/trtllm-build" in lines
    assert f"mpirun {installation}/mpirun" in lines
    assert lines[lines.index("engine torch yes, on the CPU") :] == [
        "engine torch yes, on the CPU",
        "engine tensorrt_llm no",
        f"- {NO_GPU}",
        "building engines no",
        f"- {NO_GPU}",
    ]


def test_what_the_engines_lack_is_a_finding(installation: Path, run_doctor: RunDoctor) -> None:
    write_library(installation, "torch", "2.9.1", TORCH_WITHOUT_CUDA)
    write_library(installation, "llguidance", "1.9.1", KILLS_ITS_PROCESS)
    broken = "raise ImportError('libmpi.so.40: not found')"
    write_library(installation, "tensorrt_llm", "1.2.1", broken)
    write_program(installation, "nvidia-smi", "exit 9")
    status, lines = run_doctor(doctor.main)
    assert status == 1
    assert "torch 2.9.1, CUDA none" in lines
    assert "NVIDIA driver not found (exit status 9)" in lines
    assert "llguidance 1.9.1" in lines
    assert "tensorrt_llm 1.2.1" in lines
    assert "Executor no" in lines
    position = lines.index("engine torch no")
    assert lines[position + 1] == "- exit status -9: pip install 'internvl-serving[torch]'"
    assert lines[position + 2 : position + 5] == [
        "engine tensorrt_llm no",
        "- exit status -9: pip install 'internvl-serving[models]'",
        f"- {NO_GPU}",
    ]
    refusal = lines[position + 5]
    assert "cannot be imported (libmpi.so.40: not found); 1.2.1 is supported" in refusal
    assert refusal.endswith(INSTALL)


def test_a_tensorrt_llm_that_kills_its_process_is_a_finding(
    installation: Path, run_doctor: RunDoctor
) -> None:
    write_library(installation, "torch", "2.9.1", "raise OSError('libcudart.so.13: no such file')")
    write_library(installation, "tensorrt_llm", "1.2.1", KILLS_ITS_PROCESS)
    status, lines = run_doctor(doctor.main)
    assert status == 1
    assert "torch 2.9.1" in lines
    assert f"- exit status -9: {INSTALL}" in lines


def test_the_builder_is_the_one_that_the_build_calls() -> None:
    assert engine_build.PROGRAM == BUILDER


def test_a_machine_that_runs_tensorrt_llm() -> None:
    found = machine(H100, programs=(BUILDER, MPI))
    assert tensorrt_llm_engine(found) == Answer("on one GPU, and on several by mpirun")
    assert engine_builder(found) == Answer("by trtllm-build, for this GPU")


def test_several_gpus_need_mpirun() -> None:
    answer = tensorrt_llm_engine(machine(H100))
    assert answer.gaps == ()
    assert "several need mpirun" in answer.how


def test_a_version_without_the_executor() -> None:
    (gap,) = tensorrt_llm_engine(machine(H100, refusal=NO_EXECUTOR)).gaps
    assert gap == f"{NO_EXECUTOR}: {INSTALL}"


def test_without_pytorch_nothing_runs() -> None:
    found = machine(H100, failure="No module named 'torch'")
    for answer, extra in ((torch_engine(found), "torch"), (tensorrt_llm_engine(found), "models")):
        gap = f"No module named 'torch': pip install 'internvl-serving[{extra}]'"
        assert answer.gaps == (gap,)


def test_engines_need_the_builder() -> None:
    (gap,) = engine_builder(machine(H100, programs=())).gaps
    assert gap == "trtllm-build is not on the PATH; it comes with tensorrt_llm 1.2.1"
