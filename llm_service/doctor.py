"""The doctor of the LLM service: `python -m llm_service.doctor` (see protos.process.doctor).

It imports no library itself, and of an engine's package the `doctor` module alone.
"""

from __future__ import annotations

from pydantic_settings import SettingsConfigDict

from llm_service.engines.tensorrt_llm.doctor import (
    BUILDER,
    LIBRARY,
    MPI,
    TRIAL,
    engine_builder,
    tensorrt_llm_engine,
    tensorrt_llm_facts,
)
from llm_service.settings import EngineName
from protos.process.doctor import Machine, conclude, torch_engine, torch_trial, version
from protos.process.settings import Options, read_settings

DISTRIBUTIONS = ("llguidance", "tensorrt", "tensorrt_llm")
# llguidance first: where it is broken, that is found before the longer imports.
TORCH_ENGINE = ("llguidance", "llm_service.__main__", "llm_service.engines.torch.launch")
CUDA_ENGINE = ("llm_service.engines.torch.kernels.triton_programs",)


class DoctorSettings(Options):
    """Options of the doctor."""

    model_config = SettingsConfigDict(
        env_prefix="INTERNVL_LLM_", cli_prog_name="python -m llm_service.doctor"
    )

    engine: EngineName = "torch"
    """The engine that is wanted; the exit status is 1 when it cannot run here."""


def main() -> None:
    """Prints what was found; exit status 1 when the engine that is wanted cannot run here."""
    settings = read_settings(DoctorSettings)
    machine = Machine.examine(
        torch_trial(TORCH_ENGINE, CUDA_ENGINE), {LIBRARY: TRIAL}, programs=(BUILDER, MPI)
    )
    versions = [(name, version(name)) for name in DISTRIBUTIONS]
    conclude(
        settings.engine,
        [*machine.facts(), *versions, *tensorrt_llm_facts(machine)],
        {"torch": torch_engine(machine), "tensorrt_llm": tensorrt_llm_engine(machine)},
        {"building engines": engine_builder(machine)},
    )


if __name__ == "__main__":
    main()
