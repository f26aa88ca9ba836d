"""The released sizes beyond InternVL2.5's: tensors of two ranks, and heads of any width."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_service.checkpoint import LLMConfig
from llm_service.engines.tensorrt_llm.build.config_file import config_document
from llm_service.engines.tensorrt_llm.build.layout import rank_tensors, source_shapes
from llm_service.engines.tensorrt_llm.build.sizing import Limits, memory
from llm_service.engines.tensorrt_llm.build.target import BuildError, Target
from tests.released_models.facts import served_models
from tests.released_models.folder import decoder_shapes, llm_config
from tests.unit.llm_service.engines.tensorrt_llm.build.split_model import expected_shapes
from tests.unit.llm_service.engines.torch.tiny import write_config

BEYOND = [name for name, model in served_models().items() if model.series != "InternVL2.5"]


def _config(folder: Path, name: str) -> LLMConfig:
    return LLMConfig.from_checkpoint(write_config(folder, llm_config(served_models()[name])))


@pytest.mark.parametrize("name", BEYOND)
def test_tensorrt_llm_gets_every_tensor_on_two_gpus(tmp_path: Path, name: str) -> None:
    config, target = _config(tmp_path, name), Target(tp=2)
    target.check(config)
    assert source_shapes(config) == decoder_shapes(served_models()[name])
    document = config_document(config, target)
    for rank in target.ranks:
        shapes = {tensor.name: tensor.shape for tensor in rank_tensors(config, target, rank)}
        assert shapes == expected_shapes(document, stage=0)


def test_a_head_that_is_wider_than_its_share_reaches_tensorrt_llm(tmp_path: Path) -> None:
    """The 4B's hidden_size is 2560: heads of 80, if it were divided between 32."""
    config = _config(tmp_path, "InternVL3_5-4B")
    document = config_document(config, Target())
    assert (document["architecture"], document["qwen_type"]) == ("Qwen3ForCausalLM", "qwen3")
    assert (document["head_size"], document["attn_bias"]) == (128, False)
    assert (document["qk_layernorm"], document["vocab_size"]) == (True, 151936)
    (rank,) = Target().ranks
    shapes = {tensor.name: tensor.shape for tensor in rank_tensors(config, Target(), rank)}
    layer = "transformer.layers.35.attention"
    assert shapes[f"{layer}.qkv.weight"] == ((32 + 2 * 8) * 128, 2560)
    assert shapes[f"{layer}.dense.weight"] == (2560, 32 * 128)
    assert shapes[f"{layer}.q_layernorm.weight"] == shapes[f"{layer}.k_layernorm.weight"] == (128,)


def test_each_gpu_of_four_has_whole_wide_heads(tmp_path: Path) -> None:
    target = Target(tp=4)
    config = _config(tmp_path, "InternVL3_5-38B")
    shapes = {tensor.name: tensor.shape for tensor in rank_tensors(config, target, target.ranks[3])}
    layer = "transformer.layers.0.attention"
    assert shapes[f"{layer}.qkv.weight"] == ((64 + 2 * 8) * 128 // 4, 5120)
    assert shapes[f"{layer}.dense.weight"] == (5120, 64 * 128 // 4)
    assert shapes[f"{layer}.q_layernorm.weight"] == (128,)


def test_the_arithmetic_of_an_engine_counts_wide_heads(tmp_path: Path) -> None:
    config = _config(tmp_path, "InternVL3_5-4B")
    needs = memory(config, Target(), Limits(1, 0, 1000, 24, 256))
    # Of 36 layers: keys and values of 8 heads of 128, in two bytes each.
    assert needs.kv_per_token == 36 * 2 * 8 * 128 * 2
    # Twice 2560, 32 heads of 128, the heads of all three, fc and gate.
    assert needs.activations == 1000 * 2 * (2 * 2560 + 4096 + 48 * 128 + 2 * 9728)


def test_quantised_matrices_are_as_wide_as_the_heads(tmp_path: Path) -> None:
    target = Target(quantization="w4a16", tp=16)
    with pytest.raises(BuildError, match=r"with --tp 16 they have \[2560, 256, 608\]"):
        target.check(_config(tmp_path, "InternVL3_5-4B"))
