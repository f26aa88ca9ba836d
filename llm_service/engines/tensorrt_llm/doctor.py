"""What the doctor asks for TensorRT-LLM: can the engine run here, and can it be built here."""

from __future__ import annotations

import sys

from llm_service.engines.tensorrt_llm.installation import check_installation
from protos.process.doctor import Answer, Machine

LIBRARY = "tensorrt_llm"
BUILDER, MPI = "trtllm-build", "mpirun"
TRIAL = f"from {__name__} import try_tensorrt_llm; try_tensorrt_llm()"
INSTALL = (
    "take the image of docker/llm_service.Dockerfile, target tensorrt_llm, or pip install "
    "tensorrt_llm==1.2.1 under Python 3.12"
)


def try_tensorrt_llm() -> None:
    """Ends the process with the sentence with which the tensorrt_llm engine would refuse."""
    try:
        check_installation()
    except ValueError as error:
        sys.exit(str(error))


def tensorrt_llm_facts(machine: Machine) -> list[tuple[str, str]]:
    """Returns what is shown of TensorRT-LLM's parts, by name."""
    executor = "no" if machine.libraries[LIBRARY].failure else "yes"
    paths = [(name, path or "not on the PATH") for name, path in machine.programs.items()]
    return [("Executor", executor), *paths]


def tensorrt_llm_engine(machine: Machine) -> Answer:
    """Returns whether the tensorrt_llm engine runs here."""
    # With [torch] pip would replace the llguidance that tensorrt_llm pins.
    gaps = [*machine.torch_gaps("models"), *machine.gpu_gaps()]
    if failure := machine.libraries[LIBRARY].failure:
        gaps.append(f"{failure}: {INSTALL}")
    where = "on one GPU, and on several by mpirun"
    if machine.programs[MPI] is None:
        where = "on one GPU; several need mpirun (apt-get install openmpi-bin)"
    return Answer(where, tuple(gaps))


def engine_builder(machine: Machine) -> Answer:
    """Returns whether `internvl-llm-build engine` can build engines here."""
    gaps = [*machine.gpu_gaps()]
    if machine.programs[BUILDER] is None:
        gaps.append(f"{BUILDER} is not on the PATH; it comes with tensorrt_llm 1.2.1")
    return Answer(f"by {BUILDER}, for this GPU", tuple(gaps))
