"""The doctor of the vision service: `python -m vision_service.doctor` (see protos.process.doctor).

It imports no library itself, and of an engine's package the `doctor` module alone.
"""

from __future__ import annotations

from pydantic_settings import SettingsConfigDict

from protos.process.doctor import Machine, conclude, torch_engine, torch_trial, version
from protos.process.settings import Options, read_settings
from vision_service.engines.tensorrt.doctor import LIBRARIES, plan_builder, tensorrt_engine
from vision_service.settings import EngineName

# Pillow first: where it is broken, that is found before the longer imports.
TORCH_ENGINE = ("PIL", "vision_service.__main__", "vision_service.engines.torch.engine")
CUDA_ENGINE = ("vision_service.engines.torch.triton_programs",)


class DoctorSettings(Options):
    """Options of the doctor."""

    model_config = SettingsConfigDict(
        env_prefix="INTERNVL_VISION_", cli_prog_name="python -m vision_service.doctor"
    )

    engine: EngineName = "torch"
    """The engine that is wanted; the exit status is 1 when it cannot run here."""


def main() -> None:
    """Prints what was found; exit status 1 when the engine that is wanted cannot run here."""
    settings = read_settings(DoctorSettings)
    machine = Machine.examine(
        torch_trial(TORCH_ENGINE, CUDA_ENGINE),
        {library: f"import {library}" for library in LIBRARIES},
    )
    conclude(
        settings.engine,
        [*machine.facts(), *((library, version(library)) for library in LIBRARIES)],
        {"torch": torch_engine(machine), "tensorrt": tensorrt_engine(machine)},
        {"building plans": plan_builder(machine)},
    )


if __name__ == "__main__":
    main()
