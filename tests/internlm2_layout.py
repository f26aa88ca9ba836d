"""The demo model's weights once more, with the decoder in InternLM2's layout.

Qwen2 has biases on q, k and v, and InternLM2 has none. The demo model was trained with all of them
at zero, so nothing is lost, and one model can be asked through both decoders.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

INDEX_FILE = "model.safetensors.index.json"
NAMES = {
    "model.embed_tokens": "model.tok_embeddings",
    "language_model.lm_head": "language_model.output",
    "self_attn.o_proj": "attention.wo",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}

Tensors = Mapping[str, torch.Tensor]


def write_internlm2(source: Path, folder: Path) -> None:
    """Writes a checkpoint of the demo model's kind anew, as one whose decoder is InternLM2.

    Raises:
        ValueError: a bias of q, k or v is not zero.
    """
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors", INDEX_FILE))
    config = json.loads((source / "config.json").read_text())
    llm = config["llm_config"]
    llm |= {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": False}
    (folder / "config.json").write_text(json.dumps(config))
    group_size = llm["num_attention_heads"] // llm["num_key_value_heads"]
    head_dim = llm["hidden_size"] // llm["num_attention_heads"]
    tensors = _internlm2_tensors(_read(source), group_size, head_dim)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _read(checkpoint: Path) -> dict[str, torch.Tensor]:
    files = set(json.loads((checkpoint / INDEX_FILE).read_text())["weight_map"].values())
    return {name: tensor for file in files for name, tensor in load_file(checkpoint / file).items()}


def _internlm2_tensors(tensors: Tensors, group_size: int, head_dim: int) -> dict[str, torch.Tensor]:
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith("language_model.") and name.endswith("_proj.bias"):
            if tensor.any():
                raise ValueError(f"{name} is not zero: InternLM2 has no such bias")
        elif ".q_proj." in name:
            key, value = (tensors[name.replace("q_proj", other)] for other in ("k_proj", "v_proj"))
            packed = _pack(tensor, key, value, group_size, head_dim)
            renamed[name.replace("self_attn.q_proj", "attention.wqkv")] = packed
        elif ".k_proj." not in name and ".v_proj." not in name:
            renamed[_internlm2_name(name)] = tensor
    return renamed


def _pack(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group_size: int, head_dim: int
) -> torch.Tensor:
    """Joins the projections by key/value head: its query heads, then its key, then its value."""
    heads = [part.view(-1, head_dim, part.shape[-1]) for part in (key, value)]
    grouped = query.view(-1, group_size, head_dim, query.shape[-1])
    packed = torch.cat([grouped, *(part[:, None] for part in heads)], dim=1)
    return packed.flatten(0, 2)  # [kv_heads x (group + 2) x head_dim, hidden]


def _internlm2_name(name: str) -> str:
    for qwen2, internlm2 in NAMES.items():
        name = name.replace(qwen2, internlm2)
    return name
