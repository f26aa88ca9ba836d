"""The config of a checkpoint folder, its weight files, and the refusals of both."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llm_service.checkpoint import LLMConfig, created_unix_seconds
from protos.checkpoint.section import CheckpointError
from tests.unit.llm_service.engines.torch.tiny import (
    INTERNLM2,
    LLAMA,
    QWEN2,
    QWEN3,
    Config,
    write_config,
)


def test_reads_what_config_json_says(tmp_path: Path) -> None:
    assert LLMConfig.from_checkpoint(write_config(tmp_path, INTERNLM2)) == LLMConfig(
        architecture="InternLM2ForCausalLM",
        hidden_size=32,
        intermediate_size=48,
        layer_count=2,
        head_count=8,
        kv_head_count=2,
        head_dim=4,
        vocabulary_size=61,
        max_position_embeddings=512,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        end_token_ids=frozenset({2}),
        rows_per_tile=256,
    )


@pytest.mark.parametrize(("listed", "expected"), [([7, 8], {60, 7, 8}), (7, {60, 7}), (None, {60})])
def test_joins_the_end_tokens_of_both_files(
    tmp_path: Path, listed: list[int] | int | None, expected: set[int]
) -> None:
    write_config(tmp_path, QWEN2)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": listed}))
    assert LLMConfig.from_checkpoint(tmp_path).end_token_ids == expected


def test_end_token_zero_counts(tmp_path: Path) -> None:
    write_config(tmp_path, {**QWEN2, "eos_token_id": 0})
    assert LLMConfig.from_checkpoint(tmp_path).end_token_ids == {0}


@pytest.mark.parametrize(
    "key",
    [
        "architectures",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
    ],
)
def test_names_a_missing_key(tmp_path: Path, key: str) -> None:
    llm = {name: value for name, value in QWEN2.items() if name != key}
    with pytest.raises(CheckpointError, match=f"llm_config.{key} is missing"):
        LLMConfig.from_checkpoint(write_config(tmp_path, llm))


@pytest.mark.parametrize(
    ("llm", "vocabulary_size", "max_position_embeddings", "head_dim"),
    [
        (INTERNLM2, 103_168, 2048, 4),
        (LLAMA, 32_000, 2048, 8),
        (QWEN2, 151_936, 32_768, 8),
        (QWEN3, 151_936, 32_768, 128),
    ],
    ids=["internlm2", "llama", "qwen2", "qwen3"],
)
def test_an_absent_key_has_the_default_of_the_family(
    tmp_path: Path,
    llm: Config,
    vocabulary_size: int,
    max_position_embeddings: int,
    head_dim: int,
) -> None:
    absent = {"vocab_size", "max_position_embeddings", "rope_theta", "rms_norm_eps", "head_dim"}
    short = {key: value for key, value in llm.items() if key not in absent}
    for own in (short, short | dict.fromkeys(absent)):  # null reads as absent
        config = LLMConfig.from_checkpoint(write_config(tmp_path, own))
        assert config.vocabulary_size == vocabulary_size
        assert config.max_position_embeddings == max_position_embeddings
        assert config.head_dim == head_dim
        assert (config.rope_theta, config.rms_norm_eps) == (10_000, 1e-6)


@pytest.mark.parametrize("llm", [LLAMA, QWEN2, QWEN3], ids=["llama", "qwen2", "qwen3"])
def test_transformers_5_writes_the_same_model_in_another_form(tmp_path: Path, llm: Config) -> None:
    expected = LLMConfig.from_checkpoint(write_config(tmp_path, {**llm, "rope_theta": 5e6}))
    new = {key: value for key, value in llm.items() if key != "rope_theta"} | {
        "dtype": "bfloat16",
        "layer_types": ["full_attention"] * 2,
        "rope_parameters": {"rope_theta": 5e6, "rope_type": "default"},
        "sliding_window": None,
    }
    assert LLMConfig.from_checkpoint(write_config(tmp_path, new)) == expected


@pytest.mark.parametrize("llm", [LLAMA, QWEN2, QWEN3], ids=["llama", "qwen2", "qwen3"])
def test_a_width_of_heads_that_is_told_is_taken(tmp_path: Path, llm: Config) -> None:
    assert LLMConfig.from_checkpoint(write_config(tmp_path, {**llm, "head_dim": 6})).head_dim == 6


@pytest.mark.parametrize("tie", [True, False, None])
def test_the_stored_head_counts_whatever_the_config_says(tmp_path: Path, tie: bool | None) -> None:
    untied = LLMConfig.from_checkpoint(write_config(tmp_path, QWEN2))
    folder = write_config(tmp_path, {**QWEN2, "tie_word_embeddings": tie})
    assert LLMConfig.from_checkpoint(folder) == untied


@pytest.mark.parametrize(
    ("llm", "change", "message"),
    [
        (INTERNLM2, {"bias": None}, "llm_config.bias is absent, which stands for True; supported"),
        (INTERNLM2, {"bias": True}, "llm_config.bias is True; supported: False"),
        (INTERNLM2, {"rope_pos_id_version": "v2pe_fix"}, "llm_config.rope_pos_id_version is 'v2pe"),
        (LLAMA, {"attention_bias": True}, "llm_config.attention_bias is True; supported: False"),
        (LLAMA, {"mlp_bias": True}, "llm_config.mlp_bias is True; supported: False"),
        (QWEN3, {"attention_bias": True}, "llm_config.attention_bias is True; supported: False"),
        (QWEN3, {"use_sliding_window": True}, "llm_config.use_sliding_window is True; supported"),
        (QWEN3, {"head_dim": 7}, "llm_config.head_dim is 7; it must be even"),
        (QWEN3, {"head_dim": 4096}, "llm_config.head_dim is 4096; it must be 1 to 1024"),
        (QWEN3, {"layer_types": ["full_attention", "sliding_attention"]}, "has 'sliding_attention"),
    ],
)
def test_refuses_an_option_of_a_family(
    tmp_path: Path, llm: Config, change: Config, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        LLMConfig.from_checkpoint(write_config(tmp_path, {**llm, **change}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architectures": ["Phi3ForCausalLM"]},
            "names Phi3ForCausalLM, Phi-3; of the series InternVL2",
        ),
        ({"architectures": 7}, "architectures is 7, not of type list"),
        ({"eos_token_id": {}}, r"llm_config.eos_token_id is \{\}; it must be token ids"),
        ({"bias": True}, "llm_config.bias is True"),
        ({"hidden_act": "gelu"}, "llm_config.hidden_act is 'gelu'; supported: 'silu'"),
        ({"use_sliding_window": True}, "llm_config.use_sliding_window is True"),
        ({"hidden_size": "32"}, "llm_config.hidden_size is '32'"),
        ({"num_hidden_layers": 0}, "llm_config.num_hidden_layers is 0"),
        ({"num_attention_heads": 6}, "num_attention_heads is 6; it must divide hidden_size 32"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3; it must divide 4 heads"),
        ({"num_attention_heads": 32}, "head_dim is 1; it must be even"),
    ],
)
def test_refuses_what_it_does_not_serve(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        LLMConfig.from_checkpoint(write_config(tmp_path, {**QWEN2, **change}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no file .*config.json"),
        ("{", "config.json: cannot be read: Expecting"),
        ("[]", "config.json: is not a JSON object"),
        ("{}", "config.json: llm_config is missing"),
    ],
)
def test_refuses_a_damaged_config(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        LLMConfig.from_checkpoint(tmp_path)


def test_a_model_is_as_old_as_its_newest_weight_file(tmp_path: Path) -> None:
    for name, seconds in (("config.json", 40), ("a.safetensors", 10), ("b.safetensors", 20)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (seconds, seconds))
    assert created_unix_seconds(tmp_path) == 20
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    assert created_unix_seconds(tmp_path) == 40
