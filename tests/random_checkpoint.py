"""Random InternVL2.5 checkpoints in the original layout: right in form, meaningless in words.

Same files and tensor names as the released checkpoints, real image geometry (448-pixel tiles, 256
tokens each). The tests' own are tiny, a few hundred thousand parameters; benchmarks write the
released shapes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

Family = Literal["qwen2", "qwen3", "internlm2"]
Config = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]

VISION_WIDTH = 64
VISION_LAYERS = 2
TEXT_WIDTH = 64
TEXT_FFN = 128
TEXT_LAYERS = 2
HEADS = 4
KV_HEADS = 2
ATTENTION_OUTPUTS = ("self_attn.o_proj.weight", "attention.wo.weight")
BYTE_COUNT = 256
SHARD_BYTE_COUNT = 2**30
WRITER_COUNT = 4
SPECIAL_TOKENS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>",
    "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>",
]  # fmt: skip


def write_random_checkpoint(
    folder: Path, *, family: Family = "qwen2", tokenizer: Path | None = None, seed: int = 0
) -> None:
    """Writes a tiny checkpoint; the same arguments give the same bytes.

    Args:
        folder: where to write; made if it does not exist.
        family: which decoder architecture.
        tokenizer: folder with tokenizer files to copy; None writes a byte-level one (Qwen only).
        seed: of the weights.
    """
    vocabulary_size = write_tokenizer(folder, tokenizer)
    write_random_weights(folder, tiny_config(family, vocabulary_size), seed=seed)


def write_tokenizer(folder: Path, source: Path | None = None) -> int:
    """Copies the tokenizer files of a folder, or writes a byte-level tokenizer.

    Returns:
        How many token ids it has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if source is None:
        _write_byte_tokenizer(folder)
    else:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(source / name, folder)
    return _vocabulary_size(folder)


def write_random_weights(
    folder: Path, config: Config, *, seed: int = 0, device: str = "cpu"
) -> None:
    """Writes random bfloat16 tensors of the shapes that a config names, and then config.json.

    Args:
        folder: where to write.
        config: a whole config.json; its vision tower is one of 300M's kind (LayerNorm, qkv bias).
        seed: of the weights.
        device: where they are drawn; another device draws other weights.
    """
    generator = torch.Generator(device).manual_seed(seed)
    shards = list(_shards(_shapes(config)))
    weight_map: dict[str, str] = {}
    writings: list[Future[None]] = []
    # Drawing is quick on a GPU: bringing one shard to the CPU overlaps the writing of others.
    with ThreadPoolExecutor(WRITER_COUNT) as writers:
        for number, shapes in enumerate(shards, 1):
            file = _file_name(number, len(shards))
            weight_map |= dict.fromkeys(shapes, file)
            tensors = {name: _random(name, shape, generator) for name, shape in shapes.items()}
            writings.append(writers.submit(_save, tensors, folder / file))
    for writing in writings:
        writing.result()
    if len(shards) > 1:
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def _shards(shapes: Shapes) -> Iterator[Shapes]:
    """Splits the tensors, in order, into files of SHARD_BYTE_COUNT; a larger tensor has its own."""
    shard: Shapes = {}
    byte_count = 0
    for name, shape in shapes.items():
        tensor_byte_count = 2 * torch.Size(shape).numel()
        if shard and byte_count + tensor_byte_count > SHARD_BYTE_COUNT:
            yield shard
            shard, byte_count = {}, 0
        shard[name] = shape
        byte_count += tensor_byte_count
    yield shard


def _file_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"


def _save(tensors: dict[str, torch.Tensor], file: Path) -> None:
    on_cpu = {name: tensor.cpu() for name, tensor in tensors.items()}
    save_file(on_cpu, file, metadata={"format": "pt"})


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(shape, generator=generator, device=generator.device)
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


def tiny_config(family: Family, vocabulary_size: int) -> Config:
    """Returns a config.json as the released checkpoints have it, with tiny numbers."""
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
        "qwen3": {"architectures": ["Qwen3ForCausalLM"], "rms_norm_eps": 1e-6,
                  "head_dim": 2 * TEXT_WIDTH // HEADS},
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


def _shapes(config: Config) -> Shapes:
    llm = config["llm_config"]
    (architecture,) = llm["architectures"]
    decoder = {
        "InternLM2ForCausalLM": _internlm2_shapes,
        "Qwen2ForCausalLM": _qwen2_shapes,
        "Qwen3ForCausalLM": _qwen3_shapes,
    }[architecture](llm)
    return _vision_shapes(config["vision_config"], llm["hidden_size"]) | decoder


def _vision_shapes(vision: Config, text_width: int) -> Shapes:
    width, ffn = vision["hidden_size"], vision["intermediate_size"]
    patch_size = vision["patch_size"]
    patches = (vision["image_size"] // patch_size) ** 2
    shapes: Shapes = {
        "vision_model.embeddings.class_embedding": (1, 1, width),
        "vision_model.embeddings.position_embedding": (1, 1 + patches, width),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch_size, patch_size),
        "vision_model.embeddings.patch_embedding.bias": (width,),
        "mlp1.0.weight": (4 * width,),
        "mlp1.0.bias": (4 * width,),
        "mlp1.1.weight": (text_width, 4 * width),
        "mlp1.1.bias": (text_width,),
        "mlp1.3.weight": (text_width, text_width),
        "mlp1.3.bias": (text_width,),
    }
    for index in range(vision["num_hidden_layers"]):
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


def _qwen3_shapes(llm: Config) -> Shapes:
    shapes = {
        name: shape for name, shape in _qwen2_shapes(llm).items() if not name.endswith("bias")
    }
    for index in range(llm["num_hidden_layers"]):
        for name in ("q_norm", "k_norm"):
            tensor = f"language_model.model.layers.{index}.self_attn.{name}.weight"
            shapes[tensor] = (llm["head_dim"],)
    return shapes


def _qwen2_shapes(llm: Config) -> Shapes:
    root = "language_model.model."
    width, ffn, heads = llm["hidden_size"], llm["intermediate_size"], llm["num_attention_heads"]
    head_dim = llm.get("head_dim", width // heads)
    head_counts = {"q": heads, "k": llm["num_key_value_heads"], "v": llm["num_key_value_heads"]}
    shapes: Shapes = {
        f"{root}embed_tokens.weight": (llm["vocab_size"], width),
        f"{root}norm.weight": (width,),
        "language_model.lm_head.weight": (llm["vocab_size"], width),
    }
    for index in range(llm["num_hidden_layers"]):
        layer = f"{root}layers.{index}."
        for name, head_count in head_counts.items():
            rows = head_count * head_dim
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (rows, width)
            shapes[f"{layer}self_attn.{name}_proj.bias"] = (rows,)
        shapes |= {
            f"{layer}self_attn.o_proj.weight": (width, heads * head_dim),
            f"{layer}mlp.gate_proj.weight": (ffn, width),
            f"{layer}mlp.up_proj.weight": (ffn, width),
            f"{layer}mlp.down_proj.weight": (width, ffn),
            f"{layer}input_layernorm.weight": (width,),
            f"{layer}post_attention_layernorm.weight": (width,),
        }
    return shapes


def _internlm2_shapes(llm: Config) -> Shapes:
    root = "language_model.model."
    width, ffn, heads = llm["hidden_size"], llm["intermediate_size"], llm["num_attention_heads"]
    qkv_rows = (heads + 2 * llm["num_key_value_heads"]) * width // heads
    shapes: Shapes = {
        f"{root}tok_embeddings.weight": (llm["vocab_size"], width),
        f"{root}norm.weight": (width,),
        "language_model.output.weight": (llm["vocab_size"], width),
    }
    for index in range(llm["num_hidden_layers"]):
        layer = f"{root}layers.{index}."
        shapes |= {
            f"{layer}attention.wqkv.weight": (qkv_rows, width),
            f"{layer}attention.wo.weight": (width, width),
            f"{layer}feed_forward.w1.weight": (ffn, width),
            f"{layer}feed_forward.w3.weight": (ffn, width),
            f"{layer}feed_forward.w2.weight": (width, ffn),
            f"{layer}attention_norm.weight": (width,),
            f"{layer}ffn_norm.weight": (width,),
        }
    return shapes
