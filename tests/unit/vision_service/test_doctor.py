"""The doctor: what it finds on this machine, on broken ones, and what follows on others."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from protos.process.doctor import NO_GPU, Answer, Machine, Trial, torch_engine
from tests.fake_libraries import (
    KILLS_ITS_PROCESS,
    TORCH_WITHOUT_CUDA,
    write_library,
    write_program,
)
from tests.unit.conftest import RunDoctor
from vision_service import doctor
from vision_service.engines.tensorrt.doctor import LIBRARIES, plan_builder, tensorrt_engine

H100 = "NVIDIA H100 80GB HBM3, compute capability 9.0, 79.2 GiB"
RTX_4090 = "NVIDIA GeForce RTX 4090, compute capability 8.9, 23.5 GiB"
FOUND = Trial()
MISSING = Trial(failure="ModuleNotFoundError: No module named 'it'")


def machine(
    *gpus: str, has: tuple[str, ...] = ("tensorrt", "tensorrt_rtx", "onnx"), failure: str = ""
) -> Machine:
    libraries = {name: FOUND if name in has else MISSING for name in LIBRARIES}
    return Machine(Trial(("590.44.01",)), Trial(("CUDA 13.0", *gpus), failure), libraries)


@pytest.mark.slow
def test_a_machine_without_a_gpu_runs_the_torch_engine(
    installation: Path, run_doctor: RunDoctor
) -> None:
    write_program(installation, "nvidia-smi", "exit 9")
    write_library(installation, "tensorrt", "10.14.1", "")
    status, lines = run_doctor(doctor.main)
    assert status == 0
    assert f"Python {platform.python_version()}" in lines
    assert f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}" in lines
    assert "NVIDIA driver not found (exit status 9)" in lines
    assert "GPU none that PyTorch finds" in lines
    assert "tensorrt 10.14.1" in lines
    assert "engine torch yes, on the CPU" in lines
    assert lines[lines.index("engine tensorrt no") + 1] == f"- {NO_GPU}"


def test_broken_libraries_are_findings(installation: Path, run_doctor: RunDoctor) -> None:
    write_program(installation, "nvidia-smi", "echo 590.44.01; echo 590.44.01")
    missing = "OSError('libnvinfer.so.10: cannot open shared object file')"
    write_library(installation, "torch", "2.9.1", TORCH_WITHOUT_CUDA)
    write_library(installation, "tensorrt", "10.14.1", f"raise {missing}")
    write_library(installation, "tensorrt_rtx", "1.4.0", KILLS_ITS_PROCESS)
    write_library(installation, "onnx", "1.18.0", "import no_such_library")
    write_library(installation, "PIL", "11.0", KILLS_ITS_PROCESS)
    status, lines = run_doctor(doctor.main)
    assert status == 1
    assert "NVIDIA driver 590.44.01" in lines
    assert "torch 2.9.1, CUDA none" in lines
    pillow = "- exit status -9: pip install 'internvl-serving[torch]'"
    assert lines[lines.index("engine torch no") :] == [
        "engine torch no",
        pillow,
        "engine tensorrt no",
        pillow,
        f"- {NO_GPU}",
        "- tensorrt cannot be imported (OSError: libnvinfer.so.10: cannot open shared object file):"
        " pip install 'tensorrt>=10.13'",
        "building plans no",
        pillow,
        "- onnx cannot be imported (ModuleNotFoundError: No module named 'no_such_library'):"
        " pip install 'internvl-serving[build]'",
        "- tensorrt builds for the GPU in its machine, and tensorrt_rtx cannot be imported"
        " (exit status -9): pip install tensorrt_rtx",
    ]


@pytest.mark.parametrize(
    ("found", "how"),
    [
        (machine(H100), "plans of tensorrt and tensorrt_rtx"),
        (machine(H100, has=("tensorrt",)), "plans of tensorrt"),
        (machine(RTX_4090, has=("tensorrt_rtx",)), "plans of tensorrt_rtx"),
    ],
)
def test_a_machine_that_runs_plans(found: Machine, how: str) -> None:
    assert tensorrt_engine(found) == Answer(how)


def test_the_first_gpu_decides() -> None:
    assert tensorrt_engine(machine(RTX_4090, H100, has=("tensorrt_rtx",))).gaps == ()


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
