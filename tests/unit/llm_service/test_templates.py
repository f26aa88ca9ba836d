from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from structlog.testing import capture_logs

from llm_service.templates import TEMPLATES, TemplateName, read_template
from protos.checkpoint.section import CheckpointError


def folder(path: Path, **config: Any) -> Path:
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_the_option_knows_every_template() -> None:
    assert get_args(TemplateName) == tuple(TEMPLATES)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_checkpoint_names_its_template(tmp_path: Path, name: str) -> None:
    assert read_template(folder(tmp_path, template=name)) == TEMPLATES[name]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({}, "config.json: template is missing; name it with --template, one of internvl2_5, Her"),
        ({"template": None}, "template is missing; name it"),
        ({"template": "phi3-chat"}, "template is 'phi3-chat'; supported: internvl2_5, Hermes-2"),
        ({"template": "internvl3_5_gpt_oss"}, "template is 'internvl3_5_gpt_oss'; supported: "),
        ({"template": 5}, "template is 5, not of type str"),
        ({"template": "Hermes-2", "system_message": 5}, "system_message is 5, not of type str"),
    ],
)
def test_a_template_that_is_not_served_is_refused(
    tmp_path: Path, config: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        read_template(folder(tmp_path, **config))


def test_a_chosen_template_is_taken_where_there_is_none(tmp_path: Path) -> None:
    with capture_logs() as logs:
        assert read_template(folder(tmp_path), "Hermes-2") == TEMPLATES["Hermes-2"]
    assert logs == []


def test_a_chosen_template_wins_with_a_warning(tmp_path: Path) -> None:
    with capture_logs() as logs:
        template = read_template(folder(tmp_path, template="phi3-chat"), "internlm2-chat")
    assert template == TEMPLATES["internlm2-chat"]
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("template_overridden", "warning")
    ]


@pytest.mark.parametrize(
    ("message", "expected"),
    [(None, TEMPLATES["internvl2_5"].system_text), ("Be kind.", "Be kind."), ("", "")],
)
def test_the_checkpoints_own_system_text(
    tmp_path: Path, message: str | None, expected: str
) -> None:
    config = folder(tmp_path, template="internvl2_5", system_message=message)
    assert read_template(config).system_text == expected
