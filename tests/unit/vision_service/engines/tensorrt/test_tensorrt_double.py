"""The double of TensorRT against the real thing: TensorRT-RTX, whose interface is TensorRT's."""

from __future__ import annotations

import inspect
import re

import pytest

from tests.doubles import tensorrt

KINDS = (tensorrt.Logger, tensorrt.Runtime, tensorrt.ICudaEngine, tensorrt.IExecutionContext)
CONSTRUCTED = (tensorrt.Logger, tensorrt.Runtime)
CALLS = [
    (kind.__name__, name, list(inspect.signature(function).parameters)[1:])
    for kind in KINDS
    for name, function in inspect.getmembers(kind, inspect.isfunction)
    if not name.startswith("_") or (name == "__init__" and kind in CONSTRUCTED)
]
# In the bindings' documentation a call reads: name(self: Type, one: type, two: type = <value>) ->
SIGNATURE = re.compile(r"\w+\(self: [\w.]+(?:, (.*?))?\) -> ")
PARAMETER = re.compile(r"(\w+): ([^,]+)")


def test_the_double_has_calls() -> None:
    assert ("IExecutionContext", "execute_async_v3", ["stream_handle"]) in CALLS


@pytest.mark.parametrize(("kind", "name", "parameters"), CALLS)
def test_the_real_library_takes_each_call(kind: str, name: str, parameters: list[str]) -> None:
    real = pytest.importorskip("tensorrt_rtx")
    documentation = getattr(getattr(real, kind), name).__doc__
    overloads = [PARAMETER.findall(text) for text in SIGNATURE.findall(documentation)]
    assert any(takes(overload, parameters) for overload in overloads), documentation


def takes(overload: list[tuple[str, str]], given: list[str]) -> bool:
    """Whether these are the overload's first parameters, and the others have defaults."""
    names = [name for name, _ in overload]
    return names[: len(given)] == given and all(" = " in kind for _, kind in overload[len(given) :])
