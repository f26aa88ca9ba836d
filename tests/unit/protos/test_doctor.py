"""What doctors have in common: trials of programs, of PyTorch and its GPUs, and the report."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from protos.process import doctor
from protos.process.doctor import Answer, Machine, Trial, conclude, torch_engine, try_torch
from tests.fake_libraries import TORCH_WITHOUT_CUDA, write_library, write_program

H100 = "NVIDIA H100 80GB HBM3, compute capability 9.0, 79.2 GiB"
DRIVER = Trial(("590.44.01", "590.44.01"))


def machine(*gpus: str, failure: str = "", driver: Trial = DRIVER) -> Machine:
    return Machine(driver, Trial(("CUDA 13.0", *gpus), failure), {})


def test_a_program_that_does_not_end_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TRIAL_SECONDS", 0.1)
    program = "import signal; signal.pause()"
    assert "timed out after 0.1 seconds" in Trial.of(sys.executable, "-c", program).failure


def test_a_program_that_is_missing_is_a_finding() -> None:
    assert "no-such-program" in Trial.of("no-such-program").failure


def test_a_machine_is_examined_by_programs(installation: Path) -> None:
    write_program(installation, "nvidia-smi", "echo 590.44.01")
    write_program(installation, "mpirun", "")
    write_library(installation, "torch", "2.9.1", TORCH_WITHOUT_CUDA)
    found = Machine.examine(
        doctor.torch_trial(["json"], ["no_such_module"]),
        {"one": "print('found')", "another": "import no_such_library"},
        programs=("mpirun", "no-such-program"),
    )
    assert found == Machine(
        driver=Trial(("590.44.01",)),
        torch=Trial(("CUDA none",)),
        libraries={
            "one": Trial(("found",)),
            "another": Trial(failure="ModuleNotFoundError: No module named 'no_such_library'"),
        },
        programs={"mpirun": f"{installation}/mpirun", "no-such-program": None},
    )


def test_the_facts_of_a_machine_with_gpus(installation: Path) -> None:
    write_library(installation, "torch", "2.9.1", TORCH_WITHOUT_CUDA)
    assert machine(H100, "another").facts() == [
        ("Python", platform.python_version()),
        ("torch", "2.9.1, CUDA 13.0"),
        ("NVIDIA driver", "590.44.01"),
        ("GPU", H100),
        ("GPU", "another"),
    ]


def test_the_facts_of_a_machine_without_a_gpu() -> None:
    facts = machine(driver=Trial(failure="exit status 9")).facts()
    assert facts[2:] == [
        ("NVIDIA driver", "not found (exit status 9)"),
        ("GPU", "none that PyTorch finds"),
    ]


def test_a_distribution_that_pip_did_not_install() -> None:
    assert doctor.version("no-such-distribution") == "not installed"


def test_where_the_torch_engine_runs() -> None:
    assert torch_engine(machine(H100)) == Answer("on the GPU, or on the CPU")
    assert torch_engine(machine()) == Answer("on the CPU")
    (gap,) = torch_engine(machine(H100, failure="No module named 'torch'")).gaps
    assert gap == "No module named 'torch': pip install 'internvl-serving[torch]'"


@pytest.mark.parametrize(("wanted", "status"), [("able", 0), ("unable", 1)])
def test_the_report_and_its_exit_status(
    capsys: pytest.CaptureFixture[str], wanted: str, status: int
) -> None:
    answers = {"able": Answer("somehow"), "unable": Answer("", ("this", "that"))}
    with pytest.raises(SystemExit) as ended:
        conclude(wanted, [("a fact", "true")], answers, {"building": Answer("by hand")})
    assert ended.value.code == status
    assert capsys.readouterr().out.splitlines() == [
        "a fact         true",
        "",
        "engine able    yes, somehow",
        "engine unable  no",
        "  - this",
        "  - that",
        "building       yes, by hand",
    ]


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch as it would be with an RTX 4090 and an H100."""
    gpus = [
        SimpleNamespace(name="RTX 4090", major=8, minor=9, total_memory=24 * 2**30),
        SimpleNamespace(name="H100", major=9, minor=0, total_memory=80 * 2**30),
    ]
    cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: len(gpus),
        get_device_properties=lambda index: gpus[index],
    )
    torch = SimpleNamespace(cuda=cuda, version=SimpleNamespace(cuda="13.0"))
    monkeypatch.setitem(sys.modules, "torch", torch)


def test_the_gpus_are_those_of_pytorch(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "kernels", ModuleType("kernels"))
    try_torch(["json"], ["kernels"])
    assert capsys.readouterr().out.splitlines() == [
        "CUDA 13.0",
        "RTX 4090, compute capability 8.9, 24.0 GiB",
        "H100, compute capability 9.0, 80.0 GiB",
    ]


def test_modules_that_cannot_be_imported_are_a_failure(two_gpus: None) -> None:
    for modules, cuda_modules in ((["no_such_module"], []), ([], ["no_such_module"])):
        with pytest.raises(ModuleNotFoundError, match="no_such_module"):
            try_torch(modules, cuda_modules)
