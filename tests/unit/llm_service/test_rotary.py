"""What llm_config says of the rotary embedding, in each form that a config.json has had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_service.rotary import rotary_base
from protos.checkpoint.section import CheckpointError, Section

DEFAULT = 10_000.0
# As transformers 4 and 5 write the same.
OLD, NEW = "rope_scaling", "rope_parameters"


def _base(**llm: Any) -> float:
    return rotary_base(Section(Path("c.json"), llm, "llm_config."), DEFAULT)


@pytest.mark.parametrize(
    "llm",
    [
        {"rope_theta": 5e6},
        {"rope_theta": 5_000_000, OLD: None},
        {"rope_theta": 5e6, OLD: {"type": "dynamic", "factor": 2.0}},
        {"rope_theta": 5e6, OLD: {"rope_type": "dynamic", "type": "dynamic", "factor": 3}},
        {"rope_theta": 5e6, OLD: {"type": "default"}},
        {"rope_theta": 5e6, OLD: {}},
        {"rope_theta": 5e6, "partial_rotary_factor": 1},
        {NEW: {"rope_theta": 5e6, "rope_type": "default"}},
        {NEW: {"rope_theta": 5e6, "rope_type": "dynamic", "factor": 2.0}},
        {NEW: {"rope_theta": 5e6, "rope_type": "default", "partial_rotary_factor": 1.0}},
        {NEW: {"rope_theta": 5e6}, "rope_theta": 5_000_000},
        {NEW: {"rope_theta": 5e6, "rope_type": "default"}, OLD: {"type": "dynamic", "factor": 2.0}},
    ],
)
def test_the_base_is_read_from_where_it_stands(llm: dict[str, Any]) -> None:
    assert _base(**llm) == 5e6


@pytest.mark.parametrize("llm", [{}, {NEW: {"rope_type": "default"}}, {"rope_theta": None}])
def test_without_a_base_it_is_the_default(llm: dict[str, Any]) -> None:
    assert _base(**llm) == DEFAULT


@pytest.mark.parametrize("rope_type", ["linear", "yarn", "longrope", "su", "llama3", "mrope"])
@pytest.mark.parametrize("name", ["type", "rope_type"])
@pytest.mark.parametrize("section", [OLD, NEW])
def test_a_type_that_changes_the_angles_is_refused_by_name(
    section: str, name: str, rope_type: str
) -> None:
    with pytest.raises(CheckpointError, match=f"llm_config.{section}.{name} is '{rope_type}'"):
        _base(rope_theta=1e6, **{section: {name: rope_type, "factor": 2.0}})


@pytest.mark.parametrize(
    ("llm", "message"),
    [
        (
            {"rope_theta": 1e6, NEW: {"rope_theta": 5e6, "rope_type": "default"}},
            r"rope_parameters.rope_theta is 5e\+06, but llm_config.rope_theta is 1e\+06",
        ),
        (
            {OLD: {"rope_theta": 7, "type": "default"}, NEW: {"rope_theta": 8}},
            "rope_parameters.rope_theta is 8, but llm_config.rope_scaling.rope_theta is 7",
        ),
        ({OLD: {"type": "mrope", "rope_type": "default"}}, "rope_type is 'default' and 'mrope'"),
        ({OLD: {"factor": 2.0}}, "rope_scaling.type is missing, though there is a factor"),
        ({OLD: {"type": "dynamic"}}, "rope_scaling.factor is missing"),
        ({OLD: {"type": "dynamic", "factor": 0.5}}, "rope_scaling.factor is 0.5; it must be 1"),
        ({OLD: {"type": "dynamic", "factor": "2"}}, "rope_scaling.factor is '2', not of type"),
        ({OLD: {"type": "dynamic", "factor": 2, "alpha": 9}}, "rope_scaling.alpha is an option"),
        (
            {NEW: {"full_attention": {"rope_theta": 5e6}}},
            "rope_parameters.full_attention is an opt",
        ),
        ({OLD: [2.0]}, r"rope_scaling is \[2.0\], not of type dict"),
        ({"partial_rotary_factor": 0.5}, "llm_config.partial_rotary_factor is 0.5; only 1 is serv"),
        ({NEW: {"partial_rotary_factor": 0.25}}, "rope_parameters.partial_rotary_factor is 0.25;"),
        ({"rope_theta": 0}, "llm_config.rope_theta is 0; it must be more than 0"),
    ],
)
def test_what_would_be_silently_wrong_is_refused(llm: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        _base(**llm)
