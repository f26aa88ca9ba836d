"""Qwen3 (the dense sizes of InternVL3.5): Qwen2 without biases, its query and key heads normed."""

from __future__ import annotations

from dataclasses import replace

from llm_service.decoders.qwen2 import QWEN2

QWEN3 = replace(
    QWEN2,
    architecture="Qwen3ForCausalLM",
    options={**QWEN2.options, "attention_bias": False},
    # Whatever hidden_size / num_attention_heads is: 64 or 80 in half of the sizes.
    defaults={**QWEN2.defaults, "head_dim": 128},
    has_qkv_bias=False,
    head_norms={"query": "self_attn.q_norm", "key": "self_attn.k_norm"},
    tensorrt_llm={
        **QWEN2.tensorrt_llm,
        "architecture": "Qwen3ForCausalLM",
        "qwen_type": "qwen3",
        "qk_layernorm": True,
    },
)
