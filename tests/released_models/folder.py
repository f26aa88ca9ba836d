"""A released folder without its weights: config.json, and tensor files of which the head is real.

A file's data is a hole: it has its full size and takes no space, so a folder of any size is written
and read at once.
"""

from __future__ import annotations

import json
import os
from math import prod
from pathlib import Path

from tests.released_models.facts import Decoder, Json, Model, Release, decoders, towers
from tests.unit.vision_service.checkpoints import original_shapes

Shapes = dict[str, tuple[int, ...]]

# What OpenGVLab's code writes into every folder, and what its classes give where a key is absent.
TOP_LEVEL: Json = {
    "architectures": ["InternVLChatModel"], "model_type": "internvl_chat",
    "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
    "torch_dtype": "bfloat16", "downsample_ratio": 0.5, "ps_version": "v2", "select_layer": -1,
    "force_image_size": 448, "dynamic_image_size": True, "use_thumbnail": True,
    "min_dynamic_patch": 1, "max_dynamic_patch": 12, "use_backbone_lora": 0, "use_llm_lora": 0,
    "pad2square": False, "system_message": None, "tie_word_embeddings": False,
}  # fmt: skip
TOP_LEVEL_DEFAULTS: Json = {
    "downsample_ratio": 0.5, "select_layer": -1, "min_dynamic_patch": 1, "use_backbone_lora": 0,
    "use_llm_lora": 0, "pad2square": False, "system_message": None, "tie_word_embeddings": False,
}  # fmt: skip
TOWER: Json = {
    "architectures": ["InternVisionModel"], "model_type": "intern_vit_6b", "num_channels": 3,
    "patch_size": 14, "image_size": 448, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
    "drop_path_rate": 0.0, "use_flash_attn": True, "use_moe": False, "num_experts": 8,
    "capacity_factor": 1.2,
}  # fmt: skip
TOWER_DEFAULTS: Json = {
    "num_channels": 3, "patch_size": 14, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
    "drop_path_rate": 0.0, "use_flash_attn": True, "hidden_size": 3200, "num_attention_heads": 25,
    "intermediate_size": 12800, "qkv_bias": False, "qk_normalization": True,
    "norm_type": "rms_norm", "tie_word_embeddings": False,
}  # fmt: skip
EVERY_DEFAULT: Json = {"tie_word_embeddings": False, "use_cache": True, "initializer_range": 0.02}
QUANTIZED_MATRIX = "language_model.model.layers.0.mlp.down_proj"
ROUTER: Shapes = {"mlp2.0.weight": (16384,), "gating.gate.1.weight": (2, 1024)}


def write_folder(release: Release, folder: Path, *, tensors: bool = True) -> Path:
    """Writes config.json and, if asked, model.safetensors; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(released_config(release)))
    if tensors:
        write_hollow_file(folder / "model.safetensors", released_shapes(release))
    return folder


def write_hollow_file(file: Path, shapes: Shapes, dtype: str = "BF16") -> None:
    """Writes a safetensors file of 16-bit tensors, with a hole for their data."""
    head, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * prod(shape)
        head[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(head).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(file, 8 + len(text) + end)


def released_config(release: Release) -> Json:
    """Returns config.json in the form that the series has it."""
    model = release.model
    if release.kind == "converted":
        return _converted_config(model)
    config = model_config(model)
    if release.kind == "quantized":
        config["llm_config"]["quantization_config"] = {"quant_method": "awq", "bits": 4}
    if release.kind == "routed":
        config["flash_mode"] = True
    return config


def model_config(model: Model) -> Json:
    """Returns config.json of a model as it was trained."""
    tower = {**TOWER, **towers()[model.tower]["vision_config"]}
    llm = llm_config(model)
    if not model.has_short_config:
        return {
            **TOP_LEVEL, "template": model.template, "vision_config": tower, "llm_config": llm,
        }  # fmt: skip
    return {
        **_without({**TOP_LEVEL, "template": model.template}, TOP_LEVEL_DEFAULTS),
        "vision_config": _without(tower, TOWER_DEFAULTS),
        "llm_config": _without(llm, {**EVERY_DEFAULT, **decoders()[model.decoder].class_defaults}),
    }


def llm_config(model: Model) -> Json:
    """Returns llm_config with every key, whatever the series leaves out."""
    general = decoders()[model.decoder].llm_config
    return {"architectures": [model.decoder], **general, **model.llm_config}


def released_shapes(release: Release) -> Shapes:
    """Returns every tensor of the folder; of a decoder that is not served, what tells it."""
    shapes = {**vision_shapes(release.model), **decoder_shapes(release.model)}
    if release.kind == "quantized":
        shapes.pop(f"{QUANTIZED_MATRIX}.weight", None)
        shapes |= {f"{QUANTIZED_MATRIX}.{name}": (8,) for name in ("qweight", "qzeros", "scales")}
    return shapes | ROUTER if release.kind == "routed" else shapes


def vision_shapes(model: Model) -> Shapes:
    """Returns the tensors of the tower and the projector."""
    tower = {**TOWER, **towers()[model.tower]["vision_config"]}
    return original_shapes({"vision_config": tower, "llm_config": model.llm_config})


def decoder_shapes(model: Model) -> Shapes:
    """Returns the tensors of the language model."""
    decoder, sizes = decoders()[model.decoder], _sizes(model)
    names = {**decoder.tensors, **_layers(decoder, model.llm_config["num_hidden_layers"])}
    return {
        f"language_model.{name}": tuple(sizes[dimension] for dimension in dimensions)
        for name, dimensions in names.items()
    }


def _layers(decoder: Decoder, layer_count: int) -> dict[str, list[str]]:
    return {
        f"model.layers.{index}.{name}": dimensions
        for index in range(layer_count)
        for name, dimensions in decoder.layer_tensors.items()
    }


def _sizes(model: Model) -> dict[str, int]:
    """Returns the dimensions that the tensors' facts name."""
    llm = model.llm_config
    heads, kv_heads = llm["num_attention_heads"], llm["num_key_value_heads"]
    head = llm.get("head_dim", llm["hidden_size"] // heads)
    return {
        "hidden": llm["hidden_size"],
        "intermediate": llm["intermediate_size"],
        "vocabulary": llm["vocab_size"],
        "head": head,
        "heads": heads,
        "query": heads * head,
        "key": kv_heads * head,
        "query_key_value": (heads + 2 * kv_heads) * head,
        "experts": llm.get("num_experts", 0),
    }


def _converted_config(model: Model) -> Json:
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "downsample_ratio": 0.5,
        "text_config": {**decoders()[model.decoder].llm_config, **model.llm_config},
        "vision_config": {"model_type": "internvl_vision", "hidden_size": 1024},
    }


def _without(values: Json, defaults: Json) -> Json:
    """Returns the keys that have another value than the class's default."""
    return {
        key: value for key, value in values.items() if key not in defaults or defaults[key] != value
    }
