"""The doctor of the LLM service: what this machine has, which engines it can run, what to fix.

`python -m llm_service.doctor` needs no checkpoint. PyTorch and TensorRT-LLM are each imported by a
process of their own, at once, so that a broken one is a finding, whatever it does to its process.
"""

from __future__ import annotations

import importlib
import platform
import shutil
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
DISTRIBUTIONS = ("llguidance", "tensorrt", "tensorrt_llm")
TORCH_ENGINE = ("llm_service.__main__", "llm_service.engines.torch.launch")
CUDA_ENGINE = ("llm_service.engines.torch.triton_programs",)
DRIVER_QUERY = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
BUILDER, MPI = "trtllm-build", "mpirun"
NO_GPU = (
    "PyTorch finds no GPU: it takes one of NVIDIA's, its driver, PyTorch with CUDA (as on PyPI) "
    "and, for a container, --gpus all"
)
INSTALL_TENSORRT_LLM = (
    "take the image of docker/llm_service.Dockerfile, target tensorrt_llm, or pip install "
    "tensorrt_llm==1.2.1 under Python 3.12"
)


class DoctorSettings(Options):
    """Options of the doctor."""

    model_config = SettingsConfigDict(
        env_prefix="INTERNVL_LLM_", cli_prog_name="python -m llm_service.doctor"
    )

    engine: Literal["torch", "tensorrt_llm"] = "torch"
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
        tensorrt_llm: how try_tensorrt_llm went.
        programs: the path of each program, None if it is not on the PATH.
    """

    driver: Trial
    torch: Trial
    tensorrt_llm: Trial
    programs: dict[str, str | None]

    @classmethod
    def examine(cls) -> Machine:
        """Tries all, which takes about as long as to import PyTorch; TensorRT-LLM takes longer."""
        trials = ("try_torch", "try_tensorrt_llm")
        programs = (f"from llm_service.doctor import {name}; {name}()" for name in trials)
        commands = [DRIVER_QUERY, *((sys.executable, "-c", program) for program in programs)]
        with ThreadPoolExecutor(len(commands)) as threads:
            driver, torch, tensorrt_llm = threads.map(lambda words: Trial.of(*words), commands)
        on_path = {name: shutil.which(name) for name in (BUILDER, MPI)}
        return cls(driver, torch, tensorrt_llm, on_path)

    @property
    def gpus(self) -> tuple[str, ...]:
        """Name, compute capability and memory of each GPU that PyTorch finds."""
        return self.torch.lines[1:]

    def facts(self) -> list[tuple[str, str]]:
        """Returns what is shown of the machine, by name."""
        missing = self.driver.failure and f"not found ({self.driver.failure})"
        return [
            ("Python", platform.python_version()),
            ("torch", ", ".join([version("torch"), *self.torch.lines[:1]])),
            ("NVIDIA driver", missing or " ".join(self.driver.lines[:1])),
            *(("GPU", gpu) for gpu in self.gpus or ("none that PyTorch finds",)),
            *((name, version(name)) for name in DISTRIBUTIONS),
            ("Executor", "no" if self.tensorrt_llm.failure else "yes"),
            *((name, path or "not on the PATH") for name, path in self.programs.items()),
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
    engines = {"torch": torch_engine(machine), "tensorrt_llm": tensorrt_llm_engine(machine)}
    for name, found in machine.facts():
        sys.stdout.write(f"{name:<21}{found}\n")
    sys.stdout.write("\n")
    for name, answer in engines.items():
        _report(f"engine {name}", answer)
    _report("building engines", engine_builder(machine))
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


def try_tensorrt_llm() -> None:
    """Ends the process with the sentence with which the tensorrt_llm engine would refuse."""
    from llm_service.engines.base import EngineStartError
    from llm_service.engines.tensorrt_llm.installation import check_installation

    try:
        check_installation()
    except EngineStartError as error:
        sys.exit(str(error))


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


def tensorrt_llm_engine(machine: Machine) -> Answer:
    """Returns whether the tensorrt_llm engine runs here."""
    # With [torch] pip would replace the llguidance that tensorrt_llm pins.
    gaps = [*_torch_gaps(machine, "models"), *([] if machine.gpus else [NO_GPU])]
    if machine.tensorrt_llm.failure:
        gaps.append(f"{machine.tensorrt_llm.failure}: {INSTALL_TENSORRT_LLM}")
    where = "on one GPU, and on several by mpirun"
    if machine.programs[MPI] is None:
        where = "on one GPU; several need mpirun (apt-get install openmpi-bin)"
    return Answer(where, tuple(gaps))


def engine_builder(machine: Machine) -> Answer:
    """Returns whether `internvl-llm-build engine` can build engines here."""
    gaps = [] if machine.gpus else [NO_GPU]
    if machine.programs[BUILDER] is None:
        gaps.append(f"{BUILDER} is not on the PATH; it comes with tensorrt_llm 1.2.1")
    return Answer(f"by {BUILDER}, for this GPU", tuple(gaps))


def _torch_gaps(machine: Machine, extra: str = "torch") -> tuple[str, ...]:
    failure = machine.torch.failure
    return (f"{failure}: pip install 'internvl-serving[{extra}]'",) if failure else ()


def _report(name: str, answer: Answer) -> None:
    sys.stdout.write(f"{name:<21}{'no' if answer.gaps else f'yes, {answer.how}'}\n")
    for gap in answer.gaps:
        sys.stdout.write(f"  - {gap}\n")


if __name__ == "__main__":
    main()
