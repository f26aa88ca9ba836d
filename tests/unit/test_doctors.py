"""What holds for the doctors of both services."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import get_args

import pytest

import llm_service.doctor
import llm_service.settings
import vision_service.doctor
import vision_service.settings
from protos.process.doctor import Machine, Trial, try_torch
from protos.process.settings import ServingSettings
from tests.fake_libraries import write_library
from tests.unit.conftest import RunDoctor

SERVICES = ("vision_service", "llm_service")
DOCTORS = {"vision_service": vision_service.doctor, "llm_service": llm_service.doctor}
SETTINGS: dict[str, type[ServingSettings]] = {
    "vision_service": vision_service.settings.Settings,
    "llm_service": llm_service.settings.Settings,
}
FOUND = Trial()


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def doctor(service: str) -> ModuleType:
    return DOCTORS[service]


def examine_cpu(_: str, libraries: dict[str, str], programs: tuple[str, ...] = ()) -> Machine:
    """Finds a machine that lacks a GPU and nothing else."""
    paths = {name: f"/bin/{name}" for name in programs}
    return Machine(FOUND, Trial(("CUDA none",)), dict.fromkeys(libraries, FOUND), paths)


def test_a_broken_pytorch_is_a_finding(
    doctor: ModuleType, installation: Path, run_doctor: RunDoctor
) -> None:
    write_library(installation, "torch", "2.9.0", "raise OSError('libcudart.so.13: no such file')")
    status, lines = run_doctor(doctor.main)
    assert status == 1
    assert "torch 2.9.0" in lines
    gap = "- OSError: libcudart.so.13: no such file: pip install 'internvl-serving[torch]'"
    assert lines[lines.index("engine torch no") + 1] == gap


def test_the_engine_that_is_wanted_decides_the_exit_status(
    service: str, doctor: ModuleType, run_doctor: RunDoctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_name, other = get_args(SETTINGS[service].model_fields["engine"].annotation)
    monkeypatch.setattr(Machine, "examine", examine_cpu)
    assert run_doctor(doctor.main, "--engine", torch_name)[0] == 0
    assert run_doctor(doctor.main, "--engine", other)[0] == 1
    variable = f"{SETTINGS[service].model_config['env_prefix']}ENGINE"
    monkeypatch.setenv(variable, other)
    status, lines = run_doctor(doctor.main)
    assert status == 1
    for engine in (torch_name, other):
        assert f"engine {engine}" in "\n".join(lines)


def test_the_doctor_itself_imports_no_library(service: str) -> None:
    libraries = {"torch", "numpy", "PIL", "safetensors", "tokenizers", "tensorrt", "tensorrt_llm"}
    program = f"import sys, {service}.doctor; sys.exit(repr({libraries} & set(sys.modules)))"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert ended.stderr == "set()\n"


def test_on_a_gpu_the_torch_engine_needs_triton(
    doctor: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    (programs,) = doctor.CUDA_ENGINE
    assert importlib.util.find_spec(programs) is not None
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    gpu = SimpleNamespace(name="H100", major=9, minor=0, total_memory=80 * 2**30)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: gpu)
    monkeypatch.setitem(sys.modules, programs, None)
    with pytest.raises(ModuleNotFoundError, match="triton_programs"):
        try_torch(doctor.TORCH_ENGINE, doctor.CUDA_ENGINE)
