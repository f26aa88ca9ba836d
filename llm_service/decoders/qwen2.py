"""Qwen2 (1B, 4B, 38B, 78B of InternVL2.5, and InternVL3): query, key, value apart, with biases."""

from __future__ import annotations

from llm_service.decoders.family import COMMON_DEFAULTS, COMMON_OPTIONS, DecoderFamily, HeadOrder

QWEN2 = DecoderFamily(
    architecture="Qwen2ForCausalLM",
    options={**COMMON_OPTIONS, "use_sliding_window": False},
    defaults={**COMMON_DEFAULTS, "vocab_size": 151_936, "max_position_embeddings": 32_768},
    embedding="model.embed_tokens",
    layers="model.layers",
    norm="model.norm",
    head="lm_head",
    attention_norm="input_layernorm",
    qkv={
        "self_attn.q_proj": HeadOrder(("query",)),
        "self_attn.k_proj": HeadOrder(("key",)),
        "self_attn.v_proj": HeadOrder(("value",)),
    },
    has_qkv_bias=True,
    head_norms={},
    attention_output="self_attn.o_proj",
    feed_forward_norm="post_attention_layernorm",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
    # But for the names, TensorRT-LLM asks for these without using them in a dense Qwen2.
    tensorrt_llm={
        "architecture": "Qwen2ForCausalLM",
        "qwen_type": "qwen2",
        "seq_length": 32768,
        "rotary_embedding_dim": None,
        "disable_weight_only_quant_plugin": False,
        "use_logn_attn": False,
        "moe": {"num_experts": 0, "top_k": 0, "normalization_mode": 0},
        "moe_intermediate_size": 0,
        "moe_shared_expert_intermediate_size": 0,
        "num_labels": 1,
        "mlp_only_layers": [],
        "decoder_sparse_step": 1,
    },
)
