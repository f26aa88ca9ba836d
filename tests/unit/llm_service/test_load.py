from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from llm_service.__main__ import load
from llm_service.checkpoint import LLMConfig
from llm_service.model import ModelInfo
from llm_service.settings import Settings, TorchOptions
from llm_service.templates import INTERNVL2_5, TemplateName
from llm_service.tokenizer import Tokenizer
from protos.checkpoint.section import CheckpointError
from tests.random_checkpoint import write_random_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_random_checkpoint(tmp_path / "random")
    return tmp_path / "random"


def change(file: Path, **values: Any) -> None:
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document | values))


def change_llm_config(checkpoint: Path, **values: Any) -> None:
    llm = json.loads((checkpoint / "config.json").read_text())["llm_config"]
    change(checkpoint / "config.json", llm_config=llm | values)


def test_end_tokens_are_the_templates_and_the_checkpoints(checkpoint: Path) -> None:
    """But none that begins a turn, which two released generation_config.json list."""
    change_llm_config(checkpoint, eos_token_id=5)
    start_id = Tokenizer.from_checkpoint(checkpoint).special_id("<|im_start|>")
    generation = {"eos_token_id": [start_id, 6]}
    (checkpoint / "generation_config.json").write_text(json.dumps(generation))
    model = ModelInfo(
        "x",
        "torch",
        LLMConfig.from_checkpoint(checkpoint),
        Tokenizer.from_checkpoint(checkpoint),
        INTERNVL2_5,
        max_context_token_count=100,
        max_image_count=1,
        max_upload_seconds=300,
        created_unix_seconds=0,
    )
    assert model.end_token_ids == {5, 6, model.tokenizer.special_id("<|im_end|>")}


def test_tokenizer_of_another_model_is_refused(checkpoint: Path) -> None:
    change_llm_config(checkpoint, vocab_size=200)
    with pytest.raises(CheckpointError, match="id 267, but llm_config.vocab_size is 200"):
        load(Settings(checkpoint=checkpoint, torch=TorchOptions(device="cpu", thread_count=1)))


def test_a_folder_of_another_kind_is_not_told_to_name_a_template(checkpoint: Path) -> None:
    document = json.loads((checkpoint / "config.json").read_text())
    del document["template"]
    document["model_type"] = "internvl"
    (checkpoint / "config.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="conver"):
        load(Settings(checkpoint=checkpoint, torch=TorchOptions(device="cpu", thread_count=1)))


@pytest.mark.parametrize("chosen", [None, "Hermes-2"])
def test_a_checkpoint_without_template_needs_the_option(
    checkpoint: Path, chosen: TemplateName | None
) -> None:
    change(checkpoint / "config.json", template=None)
    options = TorchOptions(device="cpu", thread_count=1)
    settings = Settings(checkpoint=checkpoint, template=chosen, torch=options)
    if chosen is None:
        with pytest.raises(CheckpointError, match="template is missing; name it with --template"):
            load(settings)
        return
    info, engine = load(settings)
    asyncio.run(engine.close())
    assert info.template.name == chosen


def test_end_token_outside_the_vocabulary_is_refused(checkpoint: Path) -> None:
    change_llm_config(checkpoint, eos_token_id=268)
    with pytest.raises(CheckpointError, match="id 268, but"):
        load(Settings(checkpoint=checkpoint, torch=TorchOptions(device="cpu", thread_count=1)))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"architectures": []}, "architectures names None"),
        ({"architectures": None}, "architectures is None, not of type list"),
        ({"rope_theta": "x"}, "rope_theta is 'x', not of type float"),
        ({"eos_token_id": "x"}, "eos_token_id is .*; it must be token ids"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps is 'x', not of type float"),
    ],
)
def test_damaged_llm_config_is_named(
    checkpoint: Path, values: dict[str, Any], sentence: str
) -> None:
    change_llm_config(checkpoint, **values)
    with pytest.raises(CheckpointError, match=sentence):
        LLMConfig.from_checkpoint(checkpoint)


def test_llm_config_that_is_no_object_is_named(checkpoint: Path) -> None:
    change(checkpoint / "config.json", llm_config=None)
    with pytest.raises(CheckpointError, match="llm_config is None, not of type dict"):
        LLMConfig.from_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("{", "json: cannot be read"), ("[]", "is not a JSON object"), ("{}", "decoder is missing")],
)
def test_damaged_tokenizer_is_named(checkpoint: Path, text: str, sentence: str) -> None:
    (checkpoint / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=sentence):
        Tokenizer.from_checkpoint(checkpoint)
