"""The exported folder: original names, two shards, and the same weights as InternLM2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from demo_training.export import INDEX_FILE, read_weights, write_weights
from demo_training.network import DemoModel
from llm_service.checkpoint import LLMConfig
from llm_service.engines.torch.weights import load_decoder
from tests.internlm2_layout import write_internlm2
from tiny import write_tiny_checkpoint
from vision_service.checkpoint import VisionConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> DemoModel:
    return write_tiny_checkpoint(folder)


def test_weights_are_two_shards_of_bfloat16_with_an_index(model: DemoModel, folder: Path) -> None:
    checkpoint = folder / "checkpoint"
    index = json.loads((checkpoint / INDEX_FILE).read_text())
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert sorted(set(index["weight_map"].values())) == names
    size = 0
    for file in names:
        with safe_open(checkpoint / file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - a safetensors file is no dict
                assert index["weight_map"][name] == file
                tensor = tensors.get_tensor(name)
                assert tensor.dtype == torch.bfloat16
                size += tensor.nbytes
    assert index["metadata"]["total_size"] == size


def test_what_is_read_is_what_was_written_and_zero_biases(model: DemoModel, folder: Path) -> None:
    weights = read_weights(folder / "checkpoint")
    for name, tensor in model.state_dict().items():
        assert torch.equal(weights.pop(name).float(), tensor)
    layers = range(model.language_model.model.config.layer_count)
    assert sorted(weights) == sorted(
        f"language_model.model.layers.{layer}.self_attn.{letter}_proj.bias"
        for layer in layers
        for letter in "qkv"
    )
    assert not any(tensor.any() for tensor in weights.values())


def test_config_has_the_tile_limit_of_the_training(model: DemoModel, folder: Path) -> None:
    assert VisionConfig.from_checkpoint(folder / "checkpoint").max_dynamic_patch == 4


def test_both_layouts_fill_the_same_decoder(model: DemoModel, folder: Path) -> None:
    write_internlm2(folder / "checkpoint", folder / "internlm2")
    decoders = [
        load_decoder(
            folder / name,
            LLMConfig.from_checkpoint(folder / name),
            torch.device("cpu"),
            torch.float32,
        )
        for name in ("checkpoint", "internlm2")
    ]
    row_count = LLMConfig.from_checkpoint(folder / "checkpoint").vocabulary_size
    for decoder in decoders:
        decoder.head.weight[row_count:] = 0  # padding, which no checkpoint fills and nobody reads
    qwen2, internlm2 = (decoder.state_dict() for decoder in decoders)
    for name, tensor in internlm2.items():
        assert torch.equal(tensor, qwen2[name])


def test_a_bias_that_is_not_zero_is_refused(model: DemoModel, folder: Path, tmp_path: Path) -> None:
    weights = read_weights(folder / "checkpoint")
    name = "language_model.model.layers.0.self_attn.k_proj.bias"
    weights[name][0] = 1
    (tmp_path / "config.json").write_text((folder / "checkpoint" / "config.json").read_text())
    write_weights(tmp_path, weights)
    with pytest.raises(ValueError, match=rf"{name} is not zero"):
        write_internlm2(tmp_path, tmp_path / "internlm2")
