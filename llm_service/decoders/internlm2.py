"""InternLM2 (2B, 8B, 26B of InternVL2 and 2.5): no biases, one tensor for query, key and value."""

from __future__ import annotations

from llm_service.decoders.family import COMMON_DEFAULTS, COMMON_OPTIONS, GROUPED, DecoderFamily

INTERNLM2 = DecoderFamily(
    architecture="InternLM2ForCausalLM",
    # The class knows other ways to count an image's positions, which no released model uses.
    options={**COMMON_OPTIONS, "rope_pos_id_version": "default"},
    defaults={
        **COMMON_DEFAULTS,
        "bias": True,
        "vocab_size": 103_168,
        "max_position_embeddings": 2048,
    },
    embedding="model.tok_embeddings",
    layers="model.layers",
    norm="model.norm",
    head="output",
    attention_norm="attention_norm",
    qkv={"attention.wqkv": GROUPED},
    has_qkv_bias=False,
    head_norms={},
    attention_output="attention.wo",
    feed_forward_norm="ffn_norm",
    gate="feed_forward.w1",
    up="feed_forward.w3",
    down="feed_forward.w2",
    # TensorRT-LLM runs it as a Llama; the name is one of its own map of models.
    tensorrt_llm={"architecture": "InternLM2ForCausalLM", "has_partial_lora_mask": False},
)
