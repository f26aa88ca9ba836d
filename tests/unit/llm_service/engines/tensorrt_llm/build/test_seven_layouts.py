"""The seven released sizes: names, shapes and splits, without a single tensor."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from llm_service.checkpoint import LLMConfig
from llm_service.engines.tensorrt_llm.build.config_file import config_document
from llm_service.engines.tensorrt_llm.build.layout import rank_tensors, source_shapes
from llm_service.engines.tensorrt_llm.build.target import BuildError, Quantization, Target
from tests.unit.llm_service.engines.tensorrt_llm.build.split_model import expected_shapes
from tests.unit.llm_service.engines.torch.tiny import tensor_shapes

CONFIGS = Path(__file__).parents[5] / "data" / "configs"
# Heads and intermediate size divide by it, and key/value heads divide by it or it by them.
SHARES = {
    "1B": [1, 2],
    "2B": [1, 2, 4, 8, 16],
    "4B": [1, 2, 4, 8, 16],
    "8B": [1, 2, 4, 8, 16, 32],
    "26B": [1, 2, 4, 8, 16],
    "38B": [1, 2, 4, 8],
    "78B": [1, 2, 4, 8, 16, 32, 64],
}
# And of what is quantised a multiple of 64 inputs is on each GPU: 4B has 43 x 256, 78B 462 x 64.
QUANTIZED_SHARES = SHARES | {"4B": [1, 2, 4], "78B": [1, 2]}
STAGES = {"1B": 4, "2B": 3, "4B": 6, "8B": 8, "26B": 2, "38B": 4, "78B": 5}

EVERY_SPLIT = pytest.mark.parametrize(
    ("size", "tp"), [(size, tp) for size, shares in SHARES.items() for tp in shares]
)


def _config(size: str) -> LLMConfig:
    return LLMConfig.from_checkpoint(CONFIGS / f"InternVL2_5-{size}")


@EVERY_SPLIT
def test_every_rank_has_the_tensors_of_the_format(size: str, tp: int) -> None:
    config, target = _config(size), Target(tp=tp, pp=STAGES[size])
    target.check(config)
    document = config_document(config, target)
    assert len(target.ranks) == document["mapping"]["world_size"]
    for index, rank in enumerate(target.ranks):
        shapes = {tensor.name: tensor.shape for tensor in rank_tensors(config, target, rank)}
        assert shapes == expected_shapes(document, stage=index // tp)


@pytest.mark.parametrize("size", SHARES)
def test_a_conversion_reads_every_tensor_of_the_language_model(size: str) -> None:
    folder = CONFIGS / f"InternVL2_5-{size}"
    llm = json.loads((folder / "config.json").read_text())["llm_config"]
    assert source_shapes(_config(size)) == tensor_shapes(llm)


@EVERY_SPLIT
def test_the_ranks_together_read_every_value_once(size: str, tp: int) -> None:
    """Norms and the embedding are on every GPU of a stage; so are copies of scarce kv heads."""
    config, target = _config(size), Target(tp=tp, pp=STAGES[size])
    read: Counter[tuple[str, int]] = Counter()
    for rank in target.ranks:
        for tensor in rank_tensors(config, target, rank):
            for block in tensor.blocks:
                for row in (block.rows.start, block.rows.stop - 1):
                    read[block.source, row] += len(block.columns)
                read[block.source, -1] += len(block.rows) * len(block.columns)
    copies = max(1, tp // config.kv_head_count)
    for name, shape in source_shapes(config).items():
        width = shape[1] if len(shape) == 2 else 1
        total = read[name, -1] / (shape[0] * width)
        assert read[name, 0] > 0
        assert read[name, shape[0] - 1] > 0
        if "norm" in name or "embed" in name:
            assert total == tp
        elif ".k_proj" in name or ".v_proj" in name:
            assert total == copies
        elif ".wqkv" in name:
            kv_share = 2 / (config.head_count // config.kv_head_count + 2)
            assert total == pytest.approx(1 + (copies - 1) * kv_share)
        else:
            assert total == 1


@pytest.mark.parametrize("quantization", ["none", "w8a16", "w4a16"])
@pytest.mark.parametrize("size", SHARES)
def test_only_these_splits_are_accepted(size: str, quantization: Quantization) -> None:
    config = _config(size)
    accepted = [
        tp for tp in range(1, 130) if _accepts(config, Target("bfloat16", quantization, tp))
    ]
    assert accepted == (SHARES if quantization == "none" else QUANTIZED_SHARES)[size]


def _accepts(config: LLMConfig, target: Target) -> bool:
    try:
        target.check(config)
    except BuildError:
        return False
    return True


@pytest.mark.parametrize(
    ("size", "target", "sentence"),
    [
        (
            "1B",
            Target(tp=4),
            "--tp 4 must divide 14 attention heads and intermediate size 4864, and divide 2 "
            "key/value heads or be a multiple of them: 1 or 2 would do",
        ),
        (
            "78B",
            Target(quantization="w4a16", tp=4),
            "--quantization w4a16 needs matrices with a multiple of 64 inputs on each GPU; with "
            "--tp 4 they have [8192, 2048, 7392]: --tp 1 or 2 would do, and --pp splits further",
        ),
        (
            "8B",
            Target(pp=3),
            "--pp 3 must divide 32 layers: 1, 2, 4, 8, 16 or 32 would do",
        ),
    ],
)
def test_a_refusal_names_the_divisors(size: str, target: Target, sentence: str) -> None:
    with pytest.raises(BuildError) as refused:
        target.check(_config(size))
    assert str(refused.value) == sentence


def test_the_families_documents() -> None:
    qwen2 = config_document(_config("1B"), Target(tp=2, quantization="w8a16"))
    assert qwen2["architecture"] == "Qwen2ForCausalLM"
    assert (qwen2["qwen_type"], qwen2["attn_bias"], qwen2["vocab_size"]) == ("qwen2", True, 151674)
    assert qwen2["quantization"]["quant_algo"] == "W8A16"
    internlm2 = config_document(_config("26B"), Target(dtype="float16"))
    assert internlm2["architecture"] == "InternLM2ForCausalLM"
    assert (internlm2["attn_bias"], internlm2["dtype"]) == (False, "float16")
    # The checkpoint's dynamic scaling changes nothing below 32768 and would not build.
    assert (internlm2["rotary_scaling"], internlm2["max_position_embeddings"]) == (None, 32768)
