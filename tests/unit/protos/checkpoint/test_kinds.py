"""Kinds of checkpoints that are not served, each refused by what it is and by the way on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protos.checkpoint.kinds import (
    require_served_config,
    require_served_name,
    require_served_tensors,
)
from protos.checkpoint.section import CheckpointError, Section

PLAIN = {
    "architectures": ["InternVLChatModel"],
    "model_type": "internvl_chat",
    "vision_config": {"use_moe": False, "num_experts": 8},
    "llm_config": {"architectures": ["Qwen2ForCausalLM"], "quantization_config": None},
    "use_backbone_lora": 0,
    "use_llm_lora": 0,
}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}


def model(name: str = "Tiny", **changes: Any) -> Section:
    """Returns the config.json of a folder of that name."""
    return Section(Path("/models") / name / "config.json", {**PLAIN, **changes})


def test_the_original_layout_is_served() -> None:
    require_served_config(model())
    require_served_config(Section(Path("/models/Tiny/config.json"), {}))
    require_served_config(model(flash_mode=False, quantization_config=None))
    code = "modeling_internvl_chat.InternVLChatModel"
    for auto_map in ({"AutoModel": code}, {"AutoModel": f"OpenGVLab/InternVL3-1B--{code}"}, None):
        require_served_config(model(auto_map=auto_map))


@pytest.mark.parametrize(
    ("name", "changes", "parts"),
    [
        (
            "InternVL3-8B-hf",
            {"model_type": "internvl"},
            ["model_type is 'internvl'", "-hf", "serve the original, InternVL3-8B, or convert"],
        ),
        (
            "InternVL3_5-8B-HF",
            {"model_type": None, "architectures": ["InternVLForConditionalGeneration"]},
            ["architectures names", "serve the original, InternVL3_5-8B, or", "hf2custom.py"],
        ),
        (
            "mine",
            {"llm_config": None, "text_config": {}},
            ["text_config stands for llm_config", "serve the original, or convert it back"],
        ),
        (
            "Qwen2-VL-7B",
            {"model_type": "qwen2_vl"},
            ["model_type is 'qwen2_vl'; only 'internvl_chat' is served"],
        ),
        (
            "mine",
            {"architectures": ["InternVLChatAudioModel"]},
            ["architectures is ['InternVLChatAudioModel']; only InternVLChatModel is served"],
        ),
        (
            "mine",
            {"auto_map": {"AutoModel": "lab/Video--modeling_merged.InternVLChatModel"}},
            ["auto_map.AutoModel is 'lab/Video--modeling_merged.", "only modeling_internvl_chat."],
        ),
        (
            "InternVL2_5-8B-AWQ",
            {"quantization_config": AWQ},
            ["/config.json: quantization_config.quant_method is 'awq'", "original, InternVL2_5-8B"],
        ),
        (
            "mine",
            {"llm_config": {"quantization_config": {"quant_method": "gptq"}}},
            ["llm_config.quantization_config.quant_method is 'gptq'", "serve the original, which"],
        ),
        (
            "InternVL3-8B-FP8-dynamic",
            {"quantization_config": {"load_in_8bit": True}},
            ["quant_method is 'unnamed'", "the original, InternVL3-8B,"],
        ),
        (
            "InternVL3_5-8B-Flash",
            {"flash_mode": True},
            ["flash_mode is True", "Flash", "serve the original, InternVL3_5-8B"],
        ),
        (
            "mine",
            {"vision_config": {"use_moe": True}},
            ["vision_config.use_moe is True: a mixture of experts"],
        ),
        (
            "InternVL3_5-30B-A3B",
            {"llm_config": {"architectures": ["Qwen3MoeForCausalLM"]}},
            ["llm_config.architectures names Qwen3MoeForCausalLM", "mixture of experts", "38B"],
        ),
        (
            "InternVL3_5-GPT-OSS-20B-A4B-Preview",
            {"llm_config": {"architectures": ["GptOssForCausalLM"]}},
            ["GptOssForCausalLM, GPT-OSS, a mixture of experts"],
        ),
        (
            "InternVL2-4B",
            {"llm_config": {"architectures": ["Phi3ForCausalLM"]}},
            ["Phi3ForCausalLM, Phi-3; of the series InternVL2"],
        ),
    ],
)
def test_a_config_tells_what_is_not_served(
    name: str, changes: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(CheckpointError) as caught:
        require_served_config(model(name, **changes))
    told = str(caught.value)
    assert told.startswith(f"/models/{name}/config.json: ")
    assert [part for part in parts if part not in told] == [], told
    assert len(told) < 400


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flash_mode": "yes"}, "flash_mode is 'yes', not of type bool"),
        ({"quantization_config": "awq"}, "quantization_config is 'awq', not of type dict"),
        ({"model_type": 7}, "model_type is 7, not of type str"),
        ({"architectures": "InternVLChatModel"}, "architectures is .*, not of type list"),
    ],
)
def test_a_value_of_another_type_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        require_served_config(model(**changes))


@pytest.mark.parametrize(
    ("tensor", "part"),
    [
        ("vision_model.base_model.model.encoder.layers.0.attn.qkv.lora_A.default.weight", "LoRA"),
        ("language_model.base_model.model.lm_head.weight", "LoRA that is not merged"),
        ("language_model.model.layers.0.attention.wqkv.lora_B.default.weight", "merge_lora.py"),
        ("language_model.model.layers.0.self_attn.q_proj.base_layer.weight", "LoRA"),
        ("language_model.lm_head.modules_to_save.default.weight", "LoRA"),
        ("language_model.model.layers.0.mlp.down_proj.qweight", "quantised"),
        ("language_model.model.layers.0.mlp.down_proj.scales", "quantised"),
        ("language_model.model.layers.0.mlp.down_proj.weight_scale_inv", "quantised"),
        ("language_model.model.layers.0.mlp.down_proj.weight_packed", "quantised"),
        ("language_model.model.layers.0.mlp.down_proj.weight.absmax", "quantised"),
        ("language_model.model.layers.0.mlp.down_proj.SCB", "quantised"),
        ("mlp2.1.weight", "Flash"),
        ("gating.block1.0.weight", "Flash"),
        ("pooling_before_gating.query_token", "Flash"),
        ("vision_tower.encoder.layer.0.attention.q_proj.weight", "-hf"),
        ("model.multi_modal_projector.linear_1.weight", "-hf"),
        ("module.vision_model.encoder.layers.0.ls1", "saved from within a wrapper"),
        ("_orig_mod.mlp1.1.weight", "save the model itself"),
        ("language_model._orig_mod.lm_head.weight", "torch.compile"),
        ("language_model._fsdp_wrapped_module.lm_head.weight", "wrapper"),
        ("model.vision_model.encoder.layers.0.ls1", "Lightning"),
    ],
)
def test_a_tensors_name_tells_what_is_not_served(tensor: str, part: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        require_served_tensors(model(), ["mlp1.0.weight", tensor])
    told = str(caught.value)
    assert told.startswith(f"/models/Tiny: {tensor} is of a")
    assert part in told


def test_the_rank_of_a_lora_alone_is_no_lora() -> None:
    merged = model(use_backbone_lora=16, use_llm_lora=8)
    plain = [
        "vision_model.encoder.layers.0.ls1",
        "vision_model.encoder.layers.0.attn.qkv.weight",
        "language_model.model.layers.0.mlp.gate_proj.weight",
        "mlp1.1.weight",
    ]
    require_served_config(merged)
    require_served_tensors(merged, plain)
    with pytest.raises(CheckpointError, match="use_backbone_lora is 16 and use_llm_lora is 8"):
        require_served_tensors(merged, ["vision_model.base_model.model.x"])


def test_a_name_tells_only_where_it_says_quantised() -> None:
    require_served_name(model("InternVL2-8B"))
    with pytest.raises(CheckpointError, match="InternVL2-8B-AWQ is a quantised .* InternVL2-8B,"):
        require_served_name(model("InternVL2-8B-AWQ"))
