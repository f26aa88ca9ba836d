"""The `config.json` of a TensorRT-LLM checkpoint."""

from __future__ import annotations

from typing import Any

from llm_service.checkpoint import LLMConfig
from llm_service.engines.tensorrt_llm.build.target import Target


def config_document(config: LLMConfig, target: Target) -> dict[str, Any]:
    """Returns config.json's content: the model as TensorRT-LLM names it, and how it is split.

    `rotary_scaling` is null on purpose. InternLM2's dynamic kind changes nothing up to
    max_position_embeddings, where the service's context ends, and TensorRT-LLM builds its dynamic
    kind from an `alpha` (Hunyuan's) that these checkpoints do not have: the build would fail.
    """
    quantization = None if target.quantization == "none" else target.quantization.upper()
    return {
        **config.family.tensorrt_llm,
        "attn_bias": config.family.has_qkv_bias,
        "dtype": target.dtype,
        "logits_dtype": "float32",
        "vocab_size": config.vocabulary_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layer_count,
        "num_attention_heads": config.head_count,
        "num_key_value_heads": config.kv_head_count,
        "head_size": config.head_dim,
        "hidden_act": "silu",
        "mlp_bias": False,
        "norm_epsilon": config.rms_norm_eps,
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": config.max_position_embeddings,
        "rotary_base": config.rope_theta,
        "rotary_scaling": None,
        "tie_word_embeddings": False,
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "quantization": {"quant_algo": quantization, "kv_cache_quant_algo": None},
        "mapping": {
            "world_size": target.tp * target.pp,
            "tp_size": target.tp,
            "pp_size": target.pp,
        },
    }
