"""Llama (the 40B, whose Yi is one, and the 76B of InternVL2): Qwen2 without biases."""

from __future__ import annotations

from dataclasses import replace

from llm_service.decoders.family import COMMON_DEFAULTS, COMMON_OPTIONS
from llm_service.decoders.qwen2 import QWEN2

LLAMA = replace(
    QWEN2,
    architecture="LlamaForCausalLM",
    options={**COMMON_OPTIONS, "attention_bias": False, "mlp_bias": False},
    defaults={**COMMON_DEFAULTS, "vocab_size": 32_000, "max_position_embeddings": 2048},
    has_qkv_bias=False,
    tensorrt_llm={"architecture": "LlamaForCausalLM", "has_partial_lora_mask": False},
)
