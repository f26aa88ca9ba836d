"""What the heads of safetensors files tell of the tensors: element types and shapes, no value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from safetensors import safe_open

from protos.checkpoint.section import CheckpointError

FLOAT_TYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class TensorSummary:
    """What tensors there are.

    Attributes:
        value_count: numbers in all of them.
        dtypes: their element types by the format's names, sorted.
    """

    value_count: int
    dtypes: tuple[str, ...]


def require_shapes(
    files: Mapping[str, Path], shapes: Mapping[str, tuple[int, ...]]
) -> TensorSummary:
    """Refuses a tensor that is not of floats, or has another shape than its own.

    Args:
        files: the file of each tensor, by name.
        shapes: that each of them must have.

    Raises:
        CheckpointError: the tensor, what it is, and the shape that it must have.
    """
    dtypes: set[str] = set()
    for name, dtype, shape in _heads(files):
        if shape != shapes[name] or dtype not in FLOAT_TYPES:
            raise CheckpointError(
                f"{files[name]}: {name} is {dtype} {list(shape)};"
                f" config.json asks for floats {list(shapes[name])}{_hint(dtype)}"
            )
        dtypes.add(dtype)
    return TensorSummary(sum(map(prod, shapes.values())), tuple(sorted(dtypes)))


def element_types(files: Mapping[str, Path]) -> tuple[str, ...]:
    """Returns the element types of some tensors by the format's names, sorted."""
    return tuple(sorted({dtype for _, dtype, _ in _heads(files)}))


def _hint(dtype: str) -> str:
    if dtype in FLOAT_TYPES:
        return ""
    return f" of {', '.join(FLOAT_TYPES)}; a quantised checkpoint is not served: serve the original"


def _heads(files: Mapping[str, Path]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yields the name, the element type and the shape of each tensor, file by file."""
    for file in dict.fromkeys(files.values()):
        with safe_open(file, framework="np") as tensors:
            for name in (name for name in files if files[name] == file):
                head = tensors.get_slice(name)
                yield name, head.get_dtype(), tuple(head.get_shape())
