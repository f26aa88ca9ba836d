"""A doctor: what this machine has, which engines it can run, and what to fix.

Each service has one, `python -m SERVICE.doctor`, which needs no checkpoint; this is what they have
in common. Each library is imported by a process of its own, all at the same time: a broken library
is a finding, whatever it does to its process.
"""

from __future__ import annotations

import importlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from typing import NoReturn

from protos.process.facts import aligned, column_width

TRIAL_SECONDS = 120.0
DRIVER_QUERY = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
NO_GPU = (
    "PyTorch finds no GPU: it takes one of NVIDIA's, its driver, PyTorch with CUDA (as on PyPI) "
    "and, for a container, --gpus all"
)


@dataclass(frozen=True)
class Trial:
    """A program's output, line by line, and the last line of its complaint, empty if it worked."""

    lines: tuple[str, ...] = ()
    failure: str = ""

    @classmethod
    def of(cls, *command: str) -> Trial:
        """Runs a command."""
        try:
            ended = subprocess.run(  # noqa: S603 - trials of ours
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
        libraries: how the trial of each other library went, by the library's name.
        programs: the path of each program, None if it is not on the PATH.
    """

    driver: Trial
    torch: Trial
    libraries: Mapping[str, Trial]
    programs: Mapping[str, str | None] = field(default_factory=dict)

    @classmethod
    def examine(
        cls, torch: str, libraries: Mapping[str, str], programs: Sequence[str] = ()
    ) -> Machine:
        """Tries everything, which takes as long as the slowest import.

        Args:
            torch: the Python program that tries PyTorch and the torch engine (see torch_trial).
            libraries: by each library's name, the Python program that tries it.
            programs: names of programs to look for.
        """
        trials = [(sys.executable, "-c", program) for program in (torch, *libraries.values())]
        commands = [DRIVER_QUERY, *trials]
        with ThreadPoolExecutor(len(commands)) as threads:
            driver, torch_found, *found = threads.map(lambda words: Trial.of(*words), commands)
        paths = {name: shutil.which(name) for name in programs}
        return cls(driver, torch_found, dict(zip(libraries, found, strict=True)), paths)

    @property
    def gpus(self) -> tuple[str, ...]:
        """Name, compute capability and memory of each GPU that PyTorch finds."""
        return self.torch.lines[1:]

    def facts(self) -> list[tuple[str, str]]:
        """Returns what every doctor shows of the machine, by name."""
        missing = self.driver.failure and f"not found ({self.driver.failure})"
        return [
            ("Python", platform.python_version()),
            ("torch", ", ".join([version("torch"), *self.torch.lines[:1]])),
            ("NVIDIA driver", missing or " ".join(self.driver.lines[:1])),
            *(("GPU", gpu) for gpu in self.gpus or ("none that PyTorch finds",)),
        ]

    def torch_gaps(self, extra: str = "torch") -> tuple[str, ...]:
        """Returns what the torch trial lacks; pip gets it with this extra of our distribution."""
        failure = self.torch.failure
        return (f"{failure}: pip install 'internvl-serving[{extra}]'",) if failure else ()

    def gpu_gaps(self) -> tuple[str, ...]:
        """Returns what is missing where there is no GPU."""
        return () if self.gpus else (NO_GPU,)


@dataclass(frozen=True)
class Answer:
    """Whether this machine can do something: how, or what it lacks and how to get that."""

    how: str
    gaps: tuple[str, ...] = ()


def torch_engine(machine: Machine) -> Answer:
    """Returns whether the torch engine runs here."""
    where = "on the GPU, or on the CPU" if machine.gpus else "on the CPU"
    return Answer(where, machine.torch_gaps())


def conclude(
    wanted: str,
    facts: Sequence[tuple[str, str]],
    engines: Mapping[str, Answer],
    others: Mapping[str, Answer],
) -> NoReturn:
    """Prints the facts and the answers; exit status 1 when the wanted engine cannot run here.

    Args:
        wanted: an engine's name.
        facts: names and values.
        engines: by each engine's name, whether it can run here.
        others: by name, whether this machine can do other things.
    """
    answers = {**{f"engine {name}": answer for name, answer in engines.items()}, **others}
    width = column_width(*dict(facts), *answers)
    sys.stdout.write(f"{aligned(facts, width)}\n")
    for name, answer in answers.items():
        verdict = "no" if answer.gaps else f"yes, {answer.how}"
        sys.stdout.write(aligned([(name, verdict)], width))
        for gap in answer.gaps:
            sys.stdout.write(f"  - {gap}\n")
    sys.exit(1 if engines[wanted].gaps else 0)


def torch_trial(modules: Sequence[str], cuda_modules: Sequence[str]) -> str:
    """Returns the Python program that runs `try_torch`."""
    arguments = f"{list(modules)}, {list(cuda_modules)}"
    return f"from {__name__} import try_torch; try_torch({arguments})"


def try_torch(modules: Sequence[str], cuda_modules: Sequence[str]) -> None:
    """Prints PyTorch's CUDA and each GPU, and then imports the modules.

    Args:
        modules: all that the torch engine needs.
        cuda_modules: what it needs besides where there is a GPU.
    """
    # By name: this runs in a trial's process alone, and nothing else here needs PyTorch.
    torch = importlib.import_module("torch")
    gpu_count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    sys.stdout.write(f"CUDA {torch.version.cuda or 'none'}\n")
    for index in range(gpu_count):
        gpu = torch.cuda.get_device_properties(index)
        capability, memory = f"{gpu.major}.{gpu.minor}", f"{gpu.total_memory / 2**30:.1f} GiB"
        sys.stdout.write(f"{gpu.name}, compute capability {capability}, {memory}\n")
    sys.stdout.flush()
    for module in (*modules, *(cuda_modules if gpu_count else ())):
        importlib.import_module(module)


def version(distribution: str) -> str:
    """Returns the version of what pip has installed, whether or not it works."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
