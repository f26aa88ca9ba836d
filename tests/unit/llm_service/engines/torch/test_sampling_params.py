"""Every option's range, at its border and beyond."""

from __future__ import annotations

import math
from typing import Any

import pytest

from llm_service.sampling import SamplingParams
from protos.errors import InvalidArgumentError


@pytest.mark.parametrize(
    ("options", "field", "limit", "value"),
    [
        ({"temperature": -0.1}, "sampling.temperature", "0 to 2", "-0.1"),
        ({"temperature": 2.1}, "sampling.temperature", "0 to 2", "2.1"),
        ({"temperature": math.nan}, "sampling.temperature", "0 to 2", "nan"),
        ({"top_p": -0.1}, "sampling.top_p", "0 to 1", "-0.1"),
        ({"top_p": 1.1}, "sampling.top_p", "0 to 1", "1.1"),
        ({"top_p": math.nan}, "sampling.top_p", "0 to 1", "nan"),
        ({"top_k": 0}, "sampling.top_k", "at least 1", "0"),
        ({"top_k": -1}, "sampling.top_k", "at least 1", "-1"),
        ({"min_p": -0.1}, "sampling.min_p", "0 to 1", "-0.1"),
        ({"min_p": 1.1}, "sampling.min_p", "0 to 1", "1.1"),
        ({"min_p": math.nan}, "sampling.min_p", "0 to 1", "nan"),
        ({"seed": -(2**63) - 1}, "sampling.seed", "to 9223372036854775807", str(-(2**63) - 1)),
        ({"seed": 2**63}, "sampling.seed", "-9223372036854775808 to", str(2**63)),
        ({"repetition_penalty": 0.0}, "sampling.repetition_penalty", "above 0", "0"),
        ({"repetition_penalty": 11.0}, "sampling.repetition_penalty", "at most 10", "11"),
        ({"repetition_penalty": math.nan}, "sampling.repetition_penalty", "at most 10", "nan"),
        ({"presence_penalty": -2.1}, "sampling.presence_penalty", "-2 to 2", "-2.1"),
        ({"presence_penalty": 2.1}, "sampling.presence_penalty", "-2 to 2", "2.1"),
        ({"presence_penalty": math.nan}, "sampling.presence_penalty", "-2 to 2", "nan"),
        ({"frequency_penalty": -2.1}, "sampling.frequency_penalty", "-2 to 2", "-2.1"),
        ({"frequency_penalty": math.inf}, "sampling.frequency_penalty", "-2 to 2", "inf"),
        ({"frequency_penalty": math.nan}, "sampling.frequency_penalty", "-2 to 2", "nan"),
        ({"max_tokens": 0}, "stop.max_token_count", "at least 1", "0"),
        ({"min_tokens": -1}, "stop.min_token_count", "at least 0", "-1"),
        ({"stop_token_ids": frozenset({3, -4})}, "stop.token_ids", "at least 0", "-4"),
    ],
)
def test_refuses_by_field_limit_and_value(
    options: dict[str, Any], field: str, limit: str, value: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        SamplingParams(**options)
    assert caught.value.field == field
    assert field not in caught.value.message
    _, told, rule = caught.value.message.partition(f" is {value}; it must be ")
    assert told
    assert limit in rule


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0, "top_p": 1.0, "min_p": 0.0, "seed": 0, "top_k": 1},
        {"temperature": 2.0, "top_p": 1e-6, "min_p": 1.0, "seed": 2**63 - 1},
        {"top_p": 0.0, "seed": -(2**63)},
        {"repetition_penalty": 10.0, "presence_penalty": -2.0, "frequency_penalty": -2.0},
        {"repetition_penalty": 1e-6, "presence_penalty": 2.0, "frequency_penalty": 2.0},
        {"max_tokens": 1, "min_tokens": 0, "stop_token_ids": frozenset({0})},
    ],
)
def test_accepts_the_borders(options: dict[str, Any]) -> None:
    params = SamplingParams(**options)
    assert {name: getattr(params, name) for name in options} == options


def test_is_greedy_by_default() -> None:
    assert SamplingParams().is_greedy
    assert not SamplingParams(temperature=0.1).is_greedy
    assert SamplingParams(temperature=0.1, top_p=0.0).is_greedy
