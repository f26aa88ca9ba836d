"""A tiny random InternVL2.5 checkpoint in the original layout: right in form, meaningless in words.

Same files and tensor names as the released checkpoints, real image geometry (448-pixel tiles, 256
tokens each), a few hundred thousand random parameters.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

Family = Literal["qwen2", "internlm2"]
Shapes = dict[str, tuple[int, ...]]

VISION_WIDTH = 64
VISION_LAYERS = 2
TEXT_WIDTH = 64
TEXT_FFN = 128
TEXT_LAYERS = 2
HEADS = 4
KV_HEADS = 2
HEAD_DIM = TEXT_WIDTH // HEADS
ATTENTION_OUTPUTS = ("self_attn.o_proj.weight", "attention.wo.weight")
PATCHES = (448 // 14) ** 2
BYTE_COUNT = 256
SPECIAL_TOKENS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>",
    "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>",
]  # fmt: skip


def write_random_checkpoint(
    folder: Path, *, family: Family = "qwen2", tokenizer: Path | None = None, seed: int = 0
) -> None:
    """Writes a checkpoint; the same arguments give the same bytes.

    Args:
        folder: where to write; made if it does not exist.
        family: which decoder architecture.
        tokenizer: folder with tokenizer files to copy; None writes a byte-level one (Qwen2 only).
        seed: of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is None:
        _write_byte_tokenizer(folder)
    else:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tokenizer / name, folder)
    vocabulary_size = _vocabulary_size(folder)
    config = _config(family, vocabulary_size)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    decoder = _qwen2_shapes if family == "qwen2" else _internlm2_shapes
    generator = torch.Generator().manual_seed(seed)
    shapes = _vision_shapes() | decoder(vocabulary_size)
    tensors = {name: _random(name, shape, generator) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(shape, generator=generator)
    if name.endswith("bias"):
        values *= 0.02
    elif "norm" in name or name == "mlp1.0.weight":
        values = 1 + 0.1 * values
    else:
        values *= shape[-1] ** -0.5
    if name.endswith(ATTENTION_OUTPUTS):
        # Strong enough that what was seen and its order decide the words, meaningless as they are.
        values *= 8
    return values.to(torch.bfloat16)


def _vocabulary_size(folder: Path) -> int:
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids = [*document["model"]["vocab"].values(), *(t["id"] for t in document["added_tokens"])]
    return int(max(ids)) + 1


def _write_byte_tokenizer(folder: Path) -> None:
    from llm_service.tokenizer import BYTE_OF_CHARACTER

    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": BYTE_COUNT + index, "content": content, "special": True, **flags}
        for index, content in enumerate(SPECIAL_TOKENS)
    ]
    definition = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": byte_level | {"use_regex": False},
        "decoder": byte_level | {"use_regex": False},
        "model": {"type": "BPE", "vocab": BYTE_OF_CHARACTER, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    (folder / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False}))


def _config(family: Family, vocabulary_size: int) -> dict[str, Any]:
    vision = {
        "hidden_size": VISION_WIDTH, "intermediate_size": 2 * VISION_WIDTH, "image_size": 448,
        "num_hidden_layers": VISION_LAYERS, "num_attention_heads": HEADS, "num_channels": 3,
        "patch_size": 14, "layer_norm_eps": 1e-6, "hidden_act": "gelu", "norm_type": "layer_norm",
        "qkv_bias": True, "qk_normalization": False, "model_type": "intern_vit_6b",
    }  # fmt: skip
    text = {
        "hidden_size": TEXT_WIDTH, "intermediate_size": TEXT_FFN, "num_hidden_layers": TEXT_LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "hidden_act": "silu",
        "vocab_size": vocabulary_size, "max_position_embeddings": 32768, "rope_theta": 1e6,
        "tie_word_embeddings": False,
    }  # fmt: skip
    own = {
        "qwen2": {"architectures": ["Qwen2ForCausalLM"], "rms_norm_eps": 1e-6},
        "internlm2": {"architectures": ["InternLM2ForCausalLM"], "rms_norm_eps": 1e-5,
                      "bias": False, "eos_token_id": 2},
    }  # fmt: skip
    return {
        "architectures": ["InternVLChatModel"], "model_type": "internvl_chat",
        "template": "internvl2_5", "downsample_ratio": 0.5, "ps_version": "v2", "select_layer": -1,
        "force_image_size": 448, "dynamic_image_size": True, "use_thumbnail": True,
        "min_dynamic_patch": 1, "max_dynamic_patch": 12, "torch_dtype": "bfloat16",
        "vision_config": vision, "llm_config": text | own[family],
    }  # fmt: skip


def _vision_shapes() -> Shapes:
    width, ffn = VISION_WIDTH, 2 * VISION_WIDTH
    shapes: Shapes = {
        "vision_model.embeddings.class_embedding": (1, 1, width),
        "vision_model.embeddings.position_embedding": (1, 1 + PATCHES, width),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, 14, 14),
        "vision_model.embeddings.patch_embedding.bias": (width,),
        "mlp1.0.weight": (4 * width,),
        "mlp1.0.bias": (4 * width,),
        "mlp1.1.weight": (TEXT_WIDTH, 4 * width),
        "mlp1.1.bias": (TEXT_WIDTH,),
        "mlp1.3.weight": (TEXT_WIDTH, TEXT_WIDTH),
        "mlp1.3.bias": (TEXT_WIDTH,),
    }
    for index in range(VISION_LAYERS):
        layer = f"vision_model.encoder.layers.{index}."
        linears = {
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (ffn, width),
            "mlp.fc2": (width, ffn),
        }
        for name, shape in linears.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1", "ls2"):
            shapes[layer + name] = (width,)
    return shapes


def _qwen2_shapes(vocabulary_size: int) -> Shapes:
    root = "language_model.model."
    shapes: Shapes = {
        f"{root}embed_tokens.weight": (vocabulary_size, TEXT_WIDTH),
        f"{root}norm.weight": (TEXT_WIDTH,),
        "language_model.lm_head.weight": (vocabulary_size, TEXT_WIDTH),
    }
    for index in range(TEXT_LAYERS):
        layer = f"{root}layers.{index}."
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            rows = heads * HEAD_DIM
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (rows, TEXT_WIDTH)
            shapes[f"{layer}self_attn.{name}_proj.bias"] = (rows,)
        shapes |= {
            f"{layer}self_attn.o_proj.weight": (TEXT_WIDTH, TEXT_WIDTH),
            f"{layer}mlp.gate_proj.weight": (TEXT_FFN, TEXT_WIDTH),
            f"{layer}mlp.up_proj.weight": (TEXT_FFN, TEXT_WIDTH),
            f"{layer}mlp.down_proj.weight": (TEXT_WIDTH, TEXT_FFN),
            f"{layer}input_layernorm.weight": (TEXT_WIDTH,),
            f"{layer}post_attention_layernorm.weight": (TEXT_WIDTH,),
        }
    return shapes


def _internlm2_shapes(vocabulary_size: int) -> Shapes:
    root = "language_model.model."
    shapes: Shapes = {
        f"{root}tok_embeddings.weight": (vocabulary_size, TEXT_WIDTH),
        f"{root}norm.weight": (TEXT_WIDTH,),
        "language_model.output.weight": (vocabulary_size, TEXT_WIDTH),
    }
    for index in range(TEXT_LAYERS):
        layer = f"{root}layers.{index}."
        shapes |= {
            f"{layer}attention.wqkv.weight": ((HEADS + 2 * KV_HEADS) * HEAD_DIM, TEXT_WIDTH),
            f"{layer}attention.wo.weight": (TEXT_WIDTH, TEXT_WIDTH),
            f"{layer}feed_forward.w1.weight": (TEXT_FFN, TEXT_WIDTH),
            f"{layer}feed_forward.w3.weight": (TEXT_FFN, TEXT_WIDTH),
            f"{layer}feed_forward.w2.weight": (TEXT_WIDTH, TEXT_FFN),
            f"{layer}attention_norm.weight": (TEXT_WIDTH,),
            f"{layer}ffn_norm.weight": (TEXT_WIDTH,),
        }
    return shapes
