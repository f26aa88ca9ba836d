"""`internvl-llm --check`: whether a checkpoint would be served, and as what, without weights."""

from __future__ import annotations

from functools import partial

import torch

from llm_service.checkpoint import LLMConfig
from llm_service.decoders.family import ROOT
from llm_service.engines.torch.kernels.create import kernels_for
from llm_service.engines.torch.weights import matching_decoder
from llm_service.memory import kv_byte_count, weight_byte_count
from llm_service.model import end_token_ids, read_model
from llm_service.settings import Settings
from llm_service.tokenizer import Tokenizer
from protos.checkpoint.folder import checked_folder
from protos.checkpoint.tensor_heads import TensorSummary
from protos.process.check import SHORT_ITEMSIZE, weight_fact
from protos.process.facts import Facts
from protos.process.memory import gib


def inspect(settings: Settings) -> Facts:
    """Checks all that the service checks of a checkpoint, and returns what it found.

    Raises:
        CheckpointError: the checkpoint is not one that we serve.
    """
    config, tokenizer, template = read_model(settings)
    tensors = _tensors(settings, config)
    return [
        ("model", settings.model_names[0]),
        *_decoder_facts(config, tensors),
        ("template", template.name),
        ("system text", template.system_text or "none"),
        *_token_facts(config, tokenizer),
        *_memory_facts(config, settings.torch.host_cache_byte_count),
    ]


def _tensors(settings: Settings, config: LLMConfig) -> TensorSummary:
    files = checked_folder(settings.checkpoint, (ROOT,))
    kernels = kernels_for(torch.device("cpu"), config)
    _, tensors = matching_decoder(settings.checkpoint, config, kernels, files)
    return tensors


def _decoder_facts(config: LLMConfig, tensors: TensorSummary) -> Facts:
    return [
        ("decoder", config.architecture),
        (
            "shape",
            f"{config.layer_count} layers of {config.head_count} heads x {config.head_dim}"
            f" ({config.kv_head_count} for keys and values), hidden size {config.hidden_size:,}",
        ),
        ("parameters", f"{tensors.value_count:,}, stored as {' and '.join(tensors.dtypes)}"),
        ("context", f"{config.max_position_embeddings:,} tokens of prompt and answer together"),
    ]


def _token_facts(config: LLMConfig, tokenizer: Tokenizer) -> Facts:
    begin = "none" if tokenizer.bos_id is None else _token(tokenizer, tokenizer.bos_id)
    ends = sorted(end_token_ids(config, tokenizer))
    return [
        ("vocabulary", f"{config.vocabulary_size:,} rows, {tokenizer.highest_id + 1:,} in use"),
        ("first token", begin),
        ("end tokens", ", ".join(_token(tokenizer, token_id) for token_id in ends)),
        ("typed tokens", " ".join(tokenizer.typed_tokens) or "none"),
    ]


def _token(tokenizer: Tokenizer, token_id: int) -> str:
    return f"{tokenizer.token_bytes(token_id).decode(errors='replace')} ({token_id})"


def _memory_facts(config: LLMConfig, host_cache_byte_count: int) -> Facts:
    context = config.max_position_embeddings
    facts = [
        weight_fact(partial(weight_byte_count, config)),
        ("weights in fp8", gib(weight_byte_count(config, 1, SHORT_ITEMSIZE, SHORT_ITEMSIZE))),
        (
            "KV cache",
            f"{kv_byte_count(config, 1, SHORT_ITEMSIZE):,} bytes a token in 16 bits,"
            f" {gib(kv_byte_count(config, context, SHORT_ITEMSIZE))} for a whole context",
        ),
    ]
    if host_cache_byte_count:
        token_count = host_cache_byte_count // kv_byte_count(config, 1, SHORT_ITEMSIZE)
        text = f"{gib(host_cache_byte_count)} of host memory, {token_count:,} tokens in 16 bits"
        facts.append(("host cache", text))
    return facts
