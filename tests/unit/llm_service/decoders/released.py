"""The language models of the released sizes beyond InternVL2.5's, as their config.json has them.

Written from OpenGVLab's tables and the base models' config files, not copied from the checkpoints.
"""

from __future__ import annotations

from tests.unit.llm_service.engines.torch.tiny import Config

# Of hidden_size, layers, heads, key/value heads, intermediate_size.
Shape = tuple[int, ...]


def _llm(family: str, shape: Shape, vocabulary_size: int, **own: object) -> Config:
    hidden_size, layer_count, heads, kv_heads, intermediate_size = shape
    return {
        "architectures": [f"{family}ForCausalLM"],
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layer_count,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary_size,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        **own,
    }


def _internlm2(shape: Shape, vocabulary_size: int = 92553) -> Config:
    scaling = {"type": "dynamic", "factor": 2.0}
    return _llm("InternLM2", shape, vocabulary_size, bias=False, rope_scaling=scaling)


def _internvl3(*shape: int) -> Config:
    scaling = {"type": "dynamic", "factor": 2.0, "rope_type": "dynamic"}
    return _llm("Qwen2", shape, 151674, use_sliding_window=False, rope_scaling=scaling)


def _internvl3_5(*shape: int) -> Config:
    own = {"attention_bias": False, "head_dim": 128, "max_position_embeddings": 40960}
    return _llm("Qwen3", shape, 151936, **own)


# Each with the width of a head, and billions of parameters: in InternVL3.5's model card, and in the
# base models'.
RELEASED: dict[str, tuple[Config, int, float]] = {
    "InternVL2-1B": (_llm("Qwen2", (896, 24, 14, 2, 4864), 151655), 64, 0.6),
    "InternVL2-2B": (_internlm2((2048, 24, 16, 8, 8192)), 128, 1.9),
    "InternVL2-8B": (_internlm2((4096, 32, 32, 8, 14336)), 128, 7.7),
    "InternVL2-26B": (_internlm2((6144, 48, 48, 8, 16384)), 128, 19.9),
    "InternVL2-40B": (_llm("Llama", (7168, 60, 56, 8, 20480), 64009, rope_theta=5e6), 128, 34.4),
    "InternVL2-Llama3-76B": (_llm("Llama", (8192, 80, 64, 8, 28672), 128265), 128, 70.6),
    "InternVL3-1B": (_internvl3(896, 24, 14, 2, 4864), 64, 0.6),
    "InternVL3-2B": (_internvl3(1536, 28, 12, 2, 8960), 128, 1.8),
    "InternVL3-8B": (_internvl3(3584, 28, 28, 4, 18944), 128, 7.6),
    "InternVL3-9B": (_internlm2((4096, 48, 32, 2, 10240), 128521), 128, 8.8),
    "InternVL3-14B": (_internvl3(5120, 48, 40, 8, 13824), 128, 14.8),
    "InternVL3-38B": (_internvl3(5120, 64, 40, 8, 27648), 128, 32.8),
    "InternVL3-78B": (_internvl3(8192, 80, 64, 8, 29568), 128, 72.7),
    "InternVL3_5-1B": (_internvl3_5(1024, 28, 16, 8, 3072), 128, 0.8),
    "InternVL3_5-2B": (_internvl3_5(2048, 28, 16, 8, 6144), 128, 2.0),
    "InternVL3_5-4B": (_internvl3_5(2560, 36, 32, 8, 9728), 128, 4.4),
    "InternVL3_5-8B": (_internvl3_5(4096, 36, 32, 8, 12288), 128, 8.2),
    "InternVL3_5-14B": (_internvl3_5(5120, 40, 40, 8, 17408), 128, 14.8),
    "InternVL3_5-38B": (_internvl3_5(5120, 64, 64, 8, 25600), 128, 32.8),
}
