"""Vision halves of checkpoints: the original tensor names and shapes, and small random ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Json = dict[str, Any]

# A 6B-style tower (RMSNorm, normalised q and k, no qkv bias) with 16 patches a tile.
SMALL_6B: Json = {
    "downsample_ratio": 0.5,
    "ps_version": "v2",
    "select_layer": -1,
    "force_image_size": 28,
    "dynamic_image_size": True,
    "use_thumbnail": True,
    "min_dynamic_patch": 1,
    "max_dynamic_patch": 6,
    "llm_config": {"hidden_size": 24},
    "vision_config": {
        "num_channels": 3,
        "patch_size": 7,
        "image_size": 28,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        "hidden_size": 40,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "norm_type": "rms_norm",
        "qkv_bias": False,
        "qk_normalization": True,
    },
}


def changed(config: Json, **changes: Any) -> Json:
    """Returns a deep copy with top-level values replaced; a dict is merged; None removes a key."""
    result: Json = json.loads(json.dumps(config))
    for key, value in changes.items():
        if value is None:
            del result[key]
        elif isinstance(value, dict):
            result[key] = changed(result[key], **value)
        else:
            result[key] = value
    return result


def original_shapes(config: Json) -> dict[str, tuple[int, ...]]:
    """Returns name -> shape of every vision tensor of an original InternVL2.5 checkpoint."""
    tower = config["vision_config"]
    width, inner = tower["hidden_size"], tower["intermediate_size"]
    patch, output = tower["patch_size"], config["llm_config"]["hidden_size"]
    positions = 1 + (tower["image_size"] // patch) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (1, 1, width),
        "vision_model.embeddings.position_embedding": (1, positions, width),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_model.embeddings.patch_embedding.bias": (width,),
        "mlp1.0.weight": (4 * width,),
        "mlp1.0.bias": (4 * width,),
        "mlp1.1.weight": (output, 4 * width),
        "mlp1.1.bias": (output,),
        "mlp1.3.weight": (output, output),
        "mlp1.3.bias": (output,),
    }
    layer: dict[str, tuple[int, ...]] = {
        "attn.qkv.weight": (3 * width, width),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "mlp.fc1.weight": (inner, width),
        "mlp.fc1.bias": (inner,),
        "mlp.fc2.weight": (width, inner),
        "mlp.fc2.bias": (width,),
        "norm1.weight": (width,),
        "norm2.weight": (width,),
        "ls1": (width,),
        "ls2": (width,),
    }
    if tower["qkv_bias"]:
        layer["attn.qkv.bias"] = (3 * width,)
    if tower["norm_type"] == "layer_norm":
        layer.update({"norm1.bias": (width,), "norm2.bias": (width,)})
    if tower["qk_normalization"]:
        layer.update({"attn.q_norm.weight": (width,), "attn.k_norm.weight": (width,)})
    for index in range(tower["num_hidden_layers"]):
        prefix = f"vision_model.encoder.layers.{index}."
        shapes.update({prefix + name: shape for name, shape in layer.items()})
    return shapes


def random_tensors(config: Json, seed: int = 0) -> dict[str, torch.Tensor]:
    """Returns random float32 tensors of these names and shapes."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * 0.3
        for name, shape in original_shapes(config).items()
    }


def write_checkpoint(
    path: Path, config: Json = SMALL_6B, tensors: dict[str, torch.Tensor] | None = None
) -> Path:
    """Writes config.json and model.safetensors, and returns the folder."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file(random_tensors(config) if tensors is None else tensors, path / "model.safetensors")
    return path
