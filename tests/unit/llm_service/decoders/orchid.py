"""Orchid: one tensor with the value heads first, then keys, then queries, and a bias."""

from __future__ import annotations

from llm_service.decoders.family import COMMON_DEFAULTS, COMMON_OPTIONS, DecoderFamily, HeadOrder

ORCHID = DecoderFamily(
    architecture="OrchidForCausalLM",
    options={**COMMON_OPTIONS, "parallel_attention": False},
    defaults={**COMMON_DEFAULTS, "max_position_embeddings": 4096},
    embedding="model.words",
    layers="model.blocks",
    norm="model.last_norm",
    head="answer",
    attention_norm="norm1",
    qkv={"mixer.vkq": HeadOrder(("value", "key", "query"))},
    has_qkv_bias=True,
    head_norms={},
    attention_output="mixer.out",
    feed_forward_norm="norm2",
    gate="ffn.gate",
    up="ffn.up",
    down="ffn.down",
    tensorrt_llm={"architecture": "LlamaForCausalLM"},  # as which TensorRT-LLM runs it
)
