"""The export: trained weights as a checkpoint folder in the original layout of InternVL2.5."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from llm_service.tokenizer import MESSAGE_END, Tokenizer
from vision_service.checkpoint import IMAGENET_MEAN, IMAGENET_STD

SHARD_COUNT = 2
INDEX_FILE = "model.safetensors.index.json"
MAX_TILE_COUNT = 4
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
LAYERS = "language_model.model.layers."

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class ModelSize:
    """Widths and depths of the two towers; heads are `vision_width / vision_heads` wide, or so."""

    vision_width: int
    vision_layers: int
    vision_heads: int
    width: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int


# 11.3 million parameters: 22.5 MB in bfloat16; a tile takes about 0.1 s on two CPU cores.
DEMO_SIZE = ModelSize(256, 6, 4, 256, 768, 6, 4, 2)
# For smoke tests alone.
TINY_SIZE = ModelSize(64, 2, 2, 64, 128, 2, 2, 1)


def write_description(folder: Path, size: ModelSize, tokenizer_folder: Path) -> None:
    """Writes all files of a checkpoint but its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (tokenizer_folder / name).is_file():
            shutil.copy(tokenizer_folder / name, folder)
    tokenizer = Tokenizer.from_checkpoint(folder)
    end_id = tokenizer.special_id(MESSAGE_END)
    _write_json(folder / "config.json", _config(size, tokenizer.highest_id + 1, end_id))
    _write_json(folder / "generation_config.json", {"eos_token_id": [end_id]})
    _write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPFeatureExtractor",
            "crop_size": 448, "size": 448, "do_center_crop": True, "do_resize": True,
            "do_normalize": True, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD,
            "resample": 3,
        },
    )  # fmt: skip


def write_weights(folder: Path, tensors: Tensors) -> None:
    """Writes tensors of the network, in bfloat16, as SHARD_COUNT files and their index."""
    named = {name: tensor.to("cpu", torch.bfloat16) for name, tensor in tensors.items()}
    _write_shards(folder, _zero_biases(named) | named)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Returns all tensors of a checkpoint that `write_weights` wrote."""
    index = json.loads((folder / INDEX_FILE).read_text())["weight_map"]
    tensors: dict[str, torch.Tensor] = {}
    for name in sorted(set(index.values())):
        tensors |= load_file(folder / name)
    return tensors


def is_zero_bias(name: str) -> bool:
    """Whether a tensor is one of those that the network does not have: q, k and v's biases."""
    return name.startswith(LAYERS) and name.endswith("_proj.bias")


def _zero_biases(tensors: Tensors) -> dict[str, torch.Tensor]:
    return {
        name.removesuffix("weight") + "bias": tensor.new_zeros(len(tensor))
        for name, tensor in tensors.items()
        if name.endswith((".q_proj.weight", ".k_proj.weight", ".v_proj.weight"))
    }


def _write_shards(folder: Path, tensors: Tensors) -> None:
    """Cuts the tensors, in the order of their names, into files of about the same size."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    weight_map, shards, written = {}, [dict[str, torch.Tensor]() for _ in range(SHARD_COUNT)], 0
    for name in sorted(tensors):
        number = min(written * SHARD_COUNT // total, SHARD_COUNT - 1)
        weight_map[name] = f"model-{number + 1:05d}-of-{SHARD_COUNT:05d}.safetensors"
        shards[number][name] = tensors[name].contiguous()
        written += tensors[name].nbytes
    for number, shard in enumerate(shards, start=1):
        file = folder / f"model-{number:05d}-of-{SHARD_COUNT:05d}.safetensors"
        save_file(shard, file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / INDEX_FILE, index)


def _config(size: ModelSize, vocabulary_size: int, end_id: int) -> dict[str, Any]:
    return {
        "architectures": ["InternVLChatModel"], "model_type": "internvl_chat",
        "template": "internvl2_5", "downsample_ratio": 0.5, "ps_version": "v2", "select_layer": -1,
        "force_image_size": 448, "dynamic_image_size": True, "use_thumbnail": True,
        "min_dynamic_patch": 1, "max_dynamic_patch": MAX_TILE_COUNT, "pad2square": False,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "vision_config": {
            "architectures": ["InternVisionModel"], "model_type": "intern_vit_6b",
            "hidden_size": size.vision_width, "intermediate_size": 4 * size.vision_width,
            "num_hidden_layers": size.vision_layers, "num_attention_heads": size.vision_heads,
            "num_channels": 3, "image_size": 448, "patch_size": 14, "hidden_act": "gelu",
            "norm_type": "layer_norm", "layer_norm_eps": 1e-6, "qkv_bias": True,
            "qk_normalization": False, "drop_path_rate": 0.0, "torch_dtype": "bfloat16",
        },
        "llm_config": {
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
            "hidden_size": size.width, "intermediate_size": size.feed_forward,
            "num_hidden_layers": size.layers, "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads, "hidden_act": "silu", "rms_norm_eps": 1e-6,
            "rope_theta": 1e6, "max_position_embeddings": 8192, "vocab_size": vocabulary_size,
            "tie_word_embeddings": False, "use_sliding_window": False, "eos_token_id": end_id,
            "torch_dtype": "bfloat16",
        },
    }  # fmt: skip


def _write_json(file: Path, document: dict[str, Any]) -> None:
    file.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
