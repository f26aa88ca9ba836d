"""What the doctor asks for TensorRT: can plans run here, and can they be built here."""

from __future__ import annotations

from protos.process.doctor import Answer, Machine

LIBRARIES = ("tensorrt", "tensorrt_rtx", "onnx")
# For which TensorRT-RTX makes plans as a rule: its documentation, Support Matrix of 1.0 to 1.5.
RTX_CAPABILITIES = ("8.6", "8.9", "12.0")
RTX_GPUS = f"GPUs of compute capability {', '.join(RTX_CAPABILITIES)}"
INSTALL_TENSORRT = "pip install 'tensorrt>=10.13'"


def tensorrt_engine(machine: Machine) -> Answer:
    """Returns whether the tensorrt engine can run a plan here, of either library."""
    gaps = [*machine.torch_gaps(), *machine.gpu_gaps()]
    libraries = [name for name in ("tensorrt", "tensorrt_rtx") if _has(machine, name)]
    if not libraries:
        gaps.append(_not_importable(machine, "tensorrt", INSTALL_TENSORRT))
    elif libraries == ["tensorrt_rtx"] and machine.gpus and not _has_rtx_gpu(machine):
        gaps.append(
            f"tensorrt_rtx makes plans for {RTX_GPUS}, not for this one: {INSTALL_TENSORRT}"
        )
    return Answer(f"plans of {' and '.join(libraries)}", tuple(gaps))


def plan_builder(machine: Machine) -> Answer:
    """Returns whether `internvl-vision-build` can build plans here."""
    gaps = [*machine.torch_gaps()]
    if not _has(machine, "onnx"):
        gaps.append(_not_importable(machine, "onnx", "pip install 'internvl-serving[build]'"))
    if _has(machine, "tensorrt") and machine.gpus:
        return Answer("by tensorrt, for this GPU", tuple(gaps))
    if not _has(machine, "tensorrt_rtx"):
        gaps.append(
            "tensorrt builds for the GPU in its machine, and "
            f"{_not_importable(machine, 'tensorrt_rtx', 'pip install tensorrt_rtx')}"
        )
    return Answer(f"by tensorrt_rtx, also without a GPU; they run on {RTX_GPUS}", tuple(gaps))


def _has(machine: Machine, library: str) -> bool:
    return not machine.libraries[library].failure


def _not_importable(machine: Machine, library: str, fix: str) -> str:
    return f"{library} cannot be imported ({machine.libraries[library].failure}): {fix}"


def _has_rtx_gpu(machine: Machine) -> bool:
    return any(f"capability {known}," in machine.gpus[0] for known in RTX_CAPABILITIES)
