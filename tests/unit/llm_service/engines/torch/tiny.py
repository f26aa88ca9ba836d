"""Language models of the original checkpoints' layout, small enough to make in a test.

Names and shapes are written here from the layout's description alone, not from our modules, so
that a test which loads such a checkpoint compares two accounts of the same thing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llm_service.added_tokens import AddedToken
from llm_service.tokenizer import (
    IMAGE_CONTEXT,
    IMAGE_END,
    IMAGE_START,
    MESSAGE_END,
    MESSAGE_START,
    Tokenizer,
)

Config = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]

QWEN2: Config = {
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "eos_token_id": 60,
}
INTERNLM2: Config = {
    **QWEN2,
    "architectures": ["InternLM2ForCausalLM"],
    "num_attention_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
    "bias": False,
    "eos_token_id": 2,
}
# Its heads together are wider than hidden_size, as in half of the released sizes.
QWEN3: Config = {**QWEN2, "architectures": ["Qwen3ForCausalLM"], "head_dim": 12}
LLAMA: Config = {**QWEN2, "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5}
EVERY_FAMILY = pytest.mark.parametrize(
    "llm", [INTERNLM2, LLAMA, QWEN2, QWEN3], ids=["internlm2", "llama", "qwen2", "qwen3"]
)


def tiny_tokenizer() -> Tokenizer:
    """Returns a tokenizer of single characters whose ids the models below have."""
    model = {"type": "BPE", "vocab": {chr(97 + i): i for i in range(26)}, "merges": []}
    definition = {"version": "1.0", "added_tokens": [], "model": model} | {
        name: {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
        for name in ("pre_tokenizer", "decoder")
    }
    contents = (IMAGE_START, IMAGE_END, IMAGE_CONTEXT, MESSAGE_START, MESSAGE_END)
    added = {content: AddedToken(50 + i, special=True) for i, content in enumerate(contents)}
    return Tokenizer(definition, added, bos_token=None)


def tensor_shapes(llm: Config) -> Shapes:
    """Returns the name and shape of every tensor of the language model."""
    layers = range(llm["num_hidden_layers"])
    hidden, vocabulary = llm["hidden_size"], llm["vocab_size"]
    (architecture,) = llm["architectures"]
    embedding, head, layer = {
        "InternLM2ForCausalLM": ("tok_embeddings", "output", _internlm2_layer),
        "LlamaForCausalLM": ("embed_tokens", "lm_head", _llama_layer),
        "Qwen2ForCausalLM": ("embed_tokens", "lm_head", _qwen2_layer),
        "Qwen3ForCausalLM": ("embed_tokens", "lm_head", _qwen3_layer),
    }[architecture]
    return {
        f"language_model.model.{embedding}.weight": (vocabulary, hidden),
        "language_model.model.norm.weight": (hidden,),
        f"language_model.{head}.weight": (vocabulary, hidden),
        **{
            f"language_model.model.layers.{index}.{name}": shape
            for index in layers
            for name, shape in layer(llm).items()
        },
    }


def _qwen2_layer(llm: Config) -> Shapes:
    kv_width = llm["hidden_size"] // llm["num_attention_heads"] * llm["num_key_value_heads"]
    return _llama_layer(llm) | {
        "self_attn.q_proj.bias": (llm["hidden_size"],),
        "self_attn.k_proj.bias": (kv_width,),
        "self_attn.v_proj.bias": (kv_width,),
    }


def _qwen3_layer(llm: Config) -> Shapes:
    norm = (llm["head_dim"],)
    return _llama_layer(llm) | {"self_attn.q_norm.weight": norm, "self_attn.k_norm.weight": norm}


def _llama_layer(llm: Config) -> Shapes:
    hidden, intermediate = llm["hidden_size"], llm["intermediate_size"]
    head_dim = llm.get("head_dim", hidden // llm["num_attention_heads"])
    width = llm["num_attention_heads"] * head_dim
    kv_width = llm["num_key_value_heads"] * head_dim
    return {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (width, hidden),
        "self_attn.k_proj.weight": (kv_width, hidden),
        "self_attn.v_proj.weight": (kv_width, hidden),
        "self_attn.o_proj.weight": (hidden, width),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (intermediate, hidden),
        "mlp.up_proj.weight": (intermediate, hidden),
        "mlp.down_proj.weight": (hidden, intermediate),
    }


def _internlm2_layer(llm: Config) -> Shapes:
    hidden, intermediate = llm["hidden_size"], llm["intermediate_size"]
    heads, kv_heads = llm["num_attention_heads"], llm["num_key_value_heads"]
    return {
        "attention_norm.weight": (hidden,),
        "attention.wqkv.weight": ((heads + 2 * kv_heads) * (hidden // heads), hidden),
        "attention.wo.weight": (hidden, hidden),
        "ffn_norm.weight": (hidden,),
        "feed_forward.w1.weight": (intermediate, hidden),
        "feed_forward.w3.weight": (intermediate, hidden),
        "feed_forward.w2.weight": (hidden, intermediate),
    }


def random_tensors(llm: Config, seed: int = 0) -> dict[str, torch.Tensor]:
    """Returns float32 tensors whose logits differ by tenths, so that mistakes show."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in tensor_shapes(llm).items():
        tensors[name] = torch.randn(shape, generator=generator) * (0.2 if len(shape) > 1 else 0.5)
        if "norm" in name:
            tensors[name] += 1
    return tensors


def write_config(folder: Path, llm: Config) -> Path:
    """Writes config.json; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"force_image_size": 448, "llm_config": llm}
    (folder / "config.json").write_text(json.dumps(document))
    return folder


def write_checkpoint(folder: Path, llm: Config, tensors: dict[str, torch.Tensor]) -> Path:
    """Writes config.json and one safetensors file; returns the folder."""
    save_file(tensors, write_config(folder, llm) / "model.safetensors")
    return folder
