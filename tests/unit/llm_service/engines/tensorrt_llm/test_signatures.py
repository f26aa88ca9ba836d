"""The double's signatures, against a table written from TensorRT-LLM's own bindings."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable
from enum import Enum
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch

TABLE = json.loads(
    (Path(__file__).parents[4] / "data" / "trtllm" / "signatures.json").read_text(encoding="utf-8")
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


def _arguments(function: Callable[..., Any]) -> list[str]:
    """Returns the names of a method's arguments."""
    parameters = inspect.signature(function).parameters.values()
    return [item.name for item in parameters if item.kind is item.POSITIONAL_OR_KEYWORD][1:]


@pytest.mark.parametrize("name", TABLE["executor_methods"])
def test_executor_method(bindings: Any, name: str) -> None:
    assert _arguments(getattr(bindings.Executor, name)) == TABLE["executor_methods"][name]


@pytest.mark.parametrize("name", TABLE["executor_overloads"])
def test_executor_method_with_several_signatures(bindings: Any, name: str) -> None:
    functions = getattr(bindings.Executor, name).functions
    assert list(map(_arguments, functions)) == TABLE["executor_overloads"][name]


def test_no_method_is_overlooked(bindings: Any) -> None:
    methods = {name for name in vars(bindings.Executor) if not name.startswith("_")}
    only_for_tests = {"close_gate", "fail_steps"}
    assert methods - only_for_tests == {
        name
        for table in (TABLE["executor_methods"], TABLE["executor_overloads"])
        for name in table
        if not name.startswith("_")
    }


def test_an_unknown_keyword_or_a_wrong_type_is_an_error(bindings: Any) -> None:
    with pytest.raises(TypeError, match="prompt_ignore_length"):
        bindings.SamplingConfig(prompt_ignore_length=3)
    with pytest.raises(TypeError, match="top_k"):
        bindings.SamplingConfig(top_k=1.5)
    with pytest.raises(TypeError, match="stop_words"):
        bindings.Request([1], 1, stop_words=[3])


@pytest.mark.parametrize(
    ("cls", "arguments", "name"),
    [
        ("SamplingConfig", {"seed": 2**64}, "seed"),
        ("SamplingConfig", {"seed": -1}, "seed"),
        ("SamplingConfig", {"top_k": 2**31}, "top_k"),
        ("Request", {"input_token_ids": [2**31], "max_tokens": 1}, "input_token_ids"),
        ("Request", {"input_token_ids": [1], "max_tokens": 2**31}, "max_tokens"),
        (
            "Request",
            {"input_token_ids": [1], "max_tokens": 1, "stop_words": [[-(2**31) - 1]]},
            "stop_words",
        ),
        ("Request", {"input_token_ids": [1], "max_tokens": 1, "client_id": -1}, "client_id"),
        (
            "Request",
            {"input_token_ids": [1], "max_tokens": 1, "cache_salt_id": 2**64},
            "cache_salt_id",
        ),
        (
            "PromptTuningConfig",
            {"embedding_table": torch.empty(1, 2), "input_token_extra_ids": [0, 2**64]},
            "input_token_extra_ids",
        ),
        ("KvCacheConfig", {"max_tokens": 2**31}, "max_tokens"),
    ],
)
def test_a_number_that_does_not_fit_its_type_is_an_error(
    bindings: Any, cls: str, arguments: dict[str, Any], name: str
) -> None:
    with pytest.raises(TypeError, match=rf"{cls}\({name}\).*incompatible"):
        getattr(bindings, cls)(**arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_p", 0.0),
        ("top_p", 1e-46),
        ("top_p", 1.01),
        ("top_p", float("nan")),
        ("top_k", -1),
        ("min_p", -0.01),
        ("min_p", 1.01),
        ("repetition_penalty", 0.0),
        ("temperature", -0.01),
        ("min_tokens", -1),
        ("beam_width", 0),
    ],
)
def test_a_sampling_option_out_of_its_range_is_an_error(
    bindings: Any, name: str, value: float
) -> None:
    with pytest.raises(RuntimeError, match=name):
        bindings.SamplingConfig(**{name: value})


def test_the_ends_of_the_ranges_are_taken(bindings: Any) -> None:
    bindings.SamplingConfig(top_k=0, top_p=1.0, min_p=1, temperature=0.0, seed=2**64 - 1)


@pytest.mark.parametrize(("token_ids", "max_tokens"), [([], 1), ([1], 0)])
def test_a_request_without_tokens_is_an_error(
    bindings: Any, token_ids: list[int], max_tokens: int
) -> None:
    with pytest.raises(RuntimeError, match="Assertion failed"):
        bindings.Request(token_ids, max_tokens)
