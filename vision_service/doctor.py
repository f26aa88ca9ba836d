"""The doctor of the vision service: what this machine has, which engines it can run, what to fix.

`python -m vision_service.doctor` needs no checkpoint. Each library is imported by a process of its
own, all at once, so that a broken one is a finding, whatever it does to its process. The LLM
service has a doctor of its own: the two share the contract alone, and a doctor is no part of it.
"""

from __future__ import annotations

import importlib
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from pydantic_settings import SettingsConfigDict

from protos.process.settings import MIB, Options, read_settings

TRIAL_SECONDS = 120.0
GIB = 1024 * MIB
LIBRARIES = ("tensorrt", "tensorrt_rtx", "onnx")
TORCH_ENGINE = ("vision_service.__main__", "vision_service.engines.torch.engine")
CUDA_ENGINE = ("vision_service.engines.torch.triton_programs",)
DRIVER_QUERY = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
# For which TensorRT-RTX makes plans as a rule: its documentation, Support Matrix of 1.0 to 1.5.
RTX_CAPABILITIES = ("8.6", "8.9", "12.0")
RTX_GPUS = f"GPUs of compute capability {', '.join(RTX_CAPABILITIES)}"
NO_GPU = (
    "PyTorch finds no GPU: it takes one of NVIDIA's, its driver, PyTorch with CUDA (as on PyPI) "
    "and, for a container, --gpus all"
)
INSTALL_TENSORRT = "pip install 'tensorrt>=10.13'"


class DoctorSettings(Options):
    """Options of the doctor."""

    model_config = SettingsConfigDict(
        env_prefix="INTERNVL_VISION_", cli_prog_name="python -m vision_service.doctor"
    )

    engine: Literal["torch", "tensorrt"] = "torch"
    """The engine that is wanted; the exit status is 1 when it cannot run here."""


@dataclass(frozen=True)
class Trial:
    """A program's output, line by line, and the last line of its complaint, empty if it worked."""

    lines: tuple[str, ...] = ()
    failure: str = ""

    @classmethod
    def of(cls, *command: str) -> Trial:
        """Runs a command."""
        try:
            ended = subprocess.run(
                command, capture_output=True, text=True, timeout=TRIAL_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return cls(failure=str(error))
        complaint = [f"exit status {ended.returncode}", *ended.stderr.split("\n")]
        failure = next(line for line in reversed(complaint) if line) if ended.returncode else ""
        return cls(tuple(ended.stdout.splitlines()), failure)


@dataclass(frozen=True)
class Machine:
    """What was found.

    Attributes:
        driver: a line with the version for each GPU.
        torch: the output of try_torch.
        libraries: how it went to import each of LIBRARIES.
    """

    driver: Trial
    torch: Trial
    libraries: dict[str, Trial]

    @classmethod
    def examine(cls) -> Machine:
        """Tries all, which takes about as long as to import PyTorch."""
        torch_program = "from vision_service.doctor import try_torch; try_torch()"
        programs = (torch_program, *(f"import {name}" for name in LIBRARIES))
        commands = [DRIVER_QUERY, *((sys.executable, "-c", program) for program in programs)]
        with ThreadPoolExecutor(len(commands)) as threads:
            driver, torch, *libraries = threads.map(lambda words: Trial.of(*words), commands)
        return cls(driver, torch, dict(zip(LIBRARIES, libraries, strict=True)))

    @property
    def gpus(self) -> tuple[str, ...]:
        """Name, compute capability and memory of each GPU that PyTorch finds."""
        return self.torch.lines[1:]

    def has(self, library: str) -> bool:
        """Whether a library can be imported."""
        return not self.libraries[library].failure

    def facts(self) -> list[tuple[str, str]]:
        """Returns what is shown of the machine, by name."""
        missing = self.driver.failure and f"not found ({self.driver.failure})"
        return [
            ("Python", platform.python_version()),
            ("torch", ", ".join([version("torch"), *self.torch.lines[:1]])),
            ("NVIDIA driver", missing or " ".join(self.driver.lines[:1])),
            *(("GPU", gpu) for gpu in self.gpus or ("none that PyTorch finds",)),
            *((library, version(library)) for library in LIBRARIES),
        ]


@dataclass(frozen=True)
class Answer:
    """Whether this machine can do something: how, or what it lacks and how to get that."""

    how: str
    gaps: tuple[str, ...] = ()


def main() -> None:
    """Prints what was found; exit status 1 when the engine that is wanted cannot run here."""
    settings = read_settings(DoctorSettings)
    machine = Machine.examine()
    engines = {"torch": torch_engine(machine), "tensorrt": tensorrt_engine(machine)}
    for name, found in machine.facts():
        sys.stdout.write(f"{name:<17}{found}\n")
    sys.stdout.write("\n")
    for name, answer in engines.items():
        _report(f"engine {name}", answer)
    _report("building plans", plan_builder(machine))
    sys.exit(1 if engines[settings.engine].gaps else 0)


def try_torch() -> None:
    """Prints PyTorch's CUDA and each GPU, and then imports all that the torch engine needs."""
    import torch

    gpu_count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    sys.stdout.write(f"CUDA {torch.version.cuda or 'none'}\n")
    for index in range(gpu_count):
        gpu = torch.cuda.get_device_properties(index)
        capability, memory = f"{gpu.major}.{gpu.minor}", f"{gpu.total_memory / GIB:.1f} GiB"
        sys.stdout.write(f"{gpu.name}, compute capability {capability}, {memory}\n")
    sys.stdout.flush()
    for module in (*TORCH_ENGINE, *(CUDA_ENGINE if gpu_count else ())):
        importlib.import_module(module)


def version(distribution: str) -> str:
    """Returns the version of what pip has installed, whether or not it works."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def torch_engine(machine: Machine) -> Answer:
    """Returns whether the torch engine runs here."""
    where = "on the GPU, or on the CPU" if machine.gpus else "on the CPU"
    return Answer(where, _torch_gaps(machine))


def tensorrt_engine(machine: Machine) -> Answer:
    """Returns whether the tensorrt engine can run a plan here, of either library."""
    gaps = [*_torch_gaps(machine), *([] if machine.gpus else [NO_GPU])]
    libraries = [name for name in ("tensorrt", "tensorrt_rtx") if machine.has(name)]
    if not libraries:
        gaps.append(_not_importable(machine, "tensorrt", INSTALL_TENSORRT))
    elif libraries == ["tensorrt_rtx"] and machine.gpus and not _has_rtx_gpu(machine):
        gaps.append(
            f"tensorrt_rtx makes plans for {RTX_GPUS}, not for this one: {INSTALL_TENSORRT}"
        )
    return Answer(f"plans of {' and '.join(libraries)}", tuple(gaps))


def plan_builder(machine: Machine) -> Answer:
    """Returns whether `internvl-vision-build` can build plans here."""
    gaps = [*_torch_gaps(machine)]
    if not machine.has("onnx"):
        gaps.append(_not_importable(machine, "onnx", "pip install 'internvl-serving[build]'"))
    if machine.has("tensorrt") and machine.gpus:
        return Answer("by tensorrt, for this GPU", tuple(gaps))
    if not machine.has("tensorrt_rtx"):
        gaps.append(
            "tensorrt builds for the GPU in its machine, and "
            f"{_not_importable(machine, 'tensorrt_rtx', 'pip install tensorrt_rtx')}"
        )
    return Answer(f"by tensorrt_rtx, also without a GPU; they run on {RTX_GPUS}", tuple(gaps))


def _torch_gaps(machine: Machine) -> tuple[str, ...]:
    failure = machine.torch.failure
    return (f"{failure}: pip install 'internvl-serving[torch]'",) if failure else ()


def _not_importable(machine: Machine, library: str, fix: str) -> str:
    return f"{library} cannot be imported ({machine.libraries[library].failure}): {fix}"


def _has_rtx_gpu(machine: Machine) -> bool:
    return any(f"capability {known}," in machine.gpus[0] for known in RTX_CAPABILITIES)


def _report(name: str, answer: Answer) -> None:
    sys.stdout.write(f"{name:<17}{'no' if answer.gaps else f'yes, {answer.how}'}\n")
    for gap in answer.gaps:
        sys.stdout.write(f"  - {gap}\n")


if __name__ == "__main__":
    main()
