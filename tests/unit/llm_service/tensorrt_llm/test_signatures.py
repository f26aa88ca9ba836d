"""The double's signatures, against a table written from TensorRT-LLM's own bindings."""

from __future__ import annotations

import dataclasses
import inspect
import json
from enum import Enum
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

TABLE = json.loads(
    (Path(__file__).parents[3] / "data" / "trtllm" / "signatures.json").read_text(encoding="utf-8")
)


def _default(cls: type, parameter: inspect.Parameter) -> Any:
    """Returns a default as the table has it: a plain value, or how it is written."""
    field = {item.name: item for item in dataclasses.fields(cls)}[parameter.name]
    if field.default_factory is not dataclasses.MISSING:
        return f"{type(field.default_factory()).__name__}()"
    return str(field.default) if isinstance(field.default, Enum) else field.default


@pytest.mark.parametrize("name", TABLE["constructors"])
def test_constructor(bindings: Any, name: str) -> None:
    cls = getattr(bindings, name)
    required, optional, keyword_only = [], {}, {}
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            keyword_only[parameter.name] = _default(cls, parameter)
        elif parameter.default is parameter.empty:
            required.append(parameter.name)
        else:
            optional[parameter.name] = _default(cls, parameter)
    expected = TABLE["constructors"][name]
    assert required == expected["required"]
    assert list(optional.items()) == list(expected["optional"].items())
    assert keyword_only == expected["keyword_only"]


@pytest.mark.parametrize("name", TABLE["enums"])
def test_enum(bindings: Any, name: str) -> None:
    cls = reduce(getattr, name.split("."), bindings)
    assert [member.name for member in cls] == TABLE["enums"][name]


@pytest.mark.parametrize("name", TABLE["attributes"])
def test_attributes(bindings: Any, name: str) -> None:
    cls = getattr(bindings, name)
    fields = {item.name for item in dataclasses.fields(cls)} if name != "Response" else set()
    present = fields or {*vars(cls), *vars(cls(1, "failed", None))}
    assert {item for item in present if not item.startswith("_")} == set(TABLE["attributes"][name])


@pytest.mark.parametrize("name", TABLE["executor_methods"])
def test_executor_method(bindings: Any, name: str) -> None:
    parameters = inspect.signature(getattr(bindings.Executor, name)).parameters.values()
    named = [item.name for item in parameters if item.kind is item.POSITIONAL_OR_KEYWORD]
    assert named[1:] == TABLE["executor_methods"][name]


def test_an_unknown_keyword_or_a_wrong_type_is_an_error(bindings: Any) -> None:
    with pytest.raises(TypeError, match="prompt_ignore_length"):
        bindings.SamplingConfig(prompt_ignore_length=3)
    with pytest.raises(TypeError, match="top_k"):
        bindings.SamplingConfig(top_k=1.5)
    with pytest.raises(TypeError, match="stop_words"):
        bindings.Request([1], 1, stop_words=[3])
