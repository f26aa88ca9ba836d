"""The language model of a checkpoint as a GGUF file, which is what llama.cpp reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gguf import (
    GGML_QUANT_VERSION,
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    SpecialVocab,
    TokenType,
    get_tensor_name_map,
)
from gguf.quants import quantize
from safetensors import safe_open

from llm_service.checkpoint import LLMConfig
from llm_service.decoders.family import ROOT
from protos.checkpoint.weight_files import weight_files

ARCHITECTURE = MODEL_ARCH.QWEN2


def write_gguf(checkpoint: Path, file: Path, element: GGMLQuantizationType) -> None:
    """Writes the language model of a checkpoint of the Qwen2 sizes.

    Args:
        checkpoint: where from.
        file: where to.
        element: of the matrices; norms and biases are float32, as llama.cpp wants them.
    """
    config = LLMConfig.from_checkpoint(checkpoint)
    writer = GGUFWriter(file, MODEL_ARCH_NAMES[ARCHITECTURE])
    _add_sizes(writer, config)
    _add_tokenizer(writer, checkpoint, config.vocabulary_size)
    names = get_tensor_name_map(ARCHITECTURE, config.layer_count)
    for name, tensor in _tensors(checkpoint):
        own_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if own_name is None:
            raise ValueError(f"llama.cpp has no name for the tensor {name}")
        stored = element if tensor.ndim > 1 else GGMLQuantizationType.F32
        writer.add_tensor(own_name, quantize(tensor.float().numpy(), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: GGUFWriter, config: LLMConfig) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.layer_count)
    writer.add_head_count(config.head_count)
    writer.add_head_count_kv(config.kv_head_count)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_quantization_version(GGML_QUANT_VERSION)


def _add_tokenizer(writer: GGUFWriter, checkpoint: Path, vocabulary_size: int) -> None:
    definition = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = _tokens(definition)
    unused = ((f"[PAD{index}]", TokenType.UNUSED) for index in range(vocabulary_size))
    texts, types = zip(*(tokens.get(i, pad) for i, pad in enumerate(unused)), strict=True)
    writer.add_tokenizer_model("gpt2")  # byte-level BPE
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(texts)
    writer.add_token_types(types)
    SpecialVocab(checkpoint, load_merges=True).add_to_gguf(writer, quiet=True)


def _tokens(definition: dict[str, Any]) -> dict[int, tuple[str, TokenType]]:
    """Returns text and type of each token id that a tokenizer.json has."""
    words = definition["model"]["vocab"].items()
    tokens = {index: (text, TokenType.NORMAL) for text, index in words}
    for added in definition["added_tokens"]:
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        tokens[added["id"]] = added["content"], kind
    return tokens


def _tensors(checkpoint: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for file in weight_files(checkpoint):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # it is no mapping
                if name.startswith(ROOT):
                    yield name.removeprefix(ROOT), tensors.get_tensor(name)
