"""What transformers makes of the tiny checkpoints, for comparison."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.unit.llm_service.engines.torch.tiny import Config

Tensors = dict[str, torch.Tensor]

# transformers itself has no InternLM2, which is a Llama but for its names.
REFERENCES: dict[str, tuple[type[PreTrainedConfig], Callable[..., PreTrainedModel]]] = {
    "InternLM2ForCausalLM": (LlamaConfig, LlamaForCausalLM),
    "LlamaForCausalLM": (LlamaConfig, LlamaForCausalLM),
    "Qwen2ForCausalLM": (Qwen2Config, Qwen2ForCausalLM),
    "Qwen3ForCausalLM": (Qwen3Config, Qwen3ForCausalLM),
}


def reference_model(llm: Config, tensors: Tensors) -> torch.nn.Module:
    """Returns transformers' model with the tensors of a tiny checkpoint."""
    ours = ("architectures", "rope_scaling", "bias")
    options = {key: value for key, value in llm.items() if key not in ours}
    options["rope_parameters"] = {"rope_type": "default", "rope_theta": options.pop("rope_theta")}
    options["tie_word_embeddings"] = False
    config_class, model_class = REFERENCES[llm["architectures"][0]]
    model = model_class(config_class(**options))
    renamed = {name.removeprefix("language_model."): t for name, t in tensors.items()}
    if llm["architectures"] == ["InternLM2ForCausalLM"]:
        renamed = _llama_tensors(llm, tensors)
    model.load_state_dict(renamed)
    model.train(False)
    return model


def _llama_tensors(llm: Config, tensors: Tensors) -> Tensors:
    """InternLM2's tensors under Llama's names, wqkv taken apart group by group."""
    names = {
        "model.tok_embeddings": "model.embed_tokens",
        "output.weight": "lm_head.weight",
        "attention.wo": "self_attn.o_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
    }
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        new = name.removeprefix("language_model.")
        if "wqkv" in new:
            for letter, part in _split_wqkv(llm, tensor).items():
                renamed[new.replace("attention.wqkv", f"self_attn.{letter}_proj")] = part
            continue
        for old_part, new_part in names.items():
            new = new.replace(old_part, new_part)
        renamed[new] = tensor
    return renamed


def _split_wqkv(llm: Config, wqkv: torch.Tensor) -> Tensors:
    heads, kv_heads = llm["num_attention_heads"], llm["num_key_value_heads"]
    group, width = heads // kv_heads, llm["hidden_size"] // heads
    parts: dict[str, list[torch.Tensor]] = {"q": [], "k": [], "v": []}
    for kv_head in range(kv_heads):
        first = kv_head * (group + 2) * width
        key, value = first + group * width, first + (group + 1) * width
        parts["q"].append(wqkv[first:key])
        parts["k"].append(wqkv[key:value])
        parts["v"].append(wqkv[value : value + width])
    return {letter: torch.cat(rows) for letter, rows in parts.items()}
