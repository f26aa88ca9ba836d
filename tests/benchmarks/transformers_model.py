"""The same decoders by the `transformers` library, which the engines are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from llm_service.checkpoint import LLMConfig
from protos.checkpoint.weight_files import weight_files
from tests.benchmarks.timeline import Timeline

PREFIX = "language_model."


class TransformersModel:
    """Greedy `generate` with the KV cache that it has by default, SDPA attention, no end token."""

    def __init__(self, model: Any) -> None:
        self._model = model.eval()
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0

    def generate(self, prompts: Sequence[list[int]], max_tokens: int) -> Timeline:
        """Generates so many tokens after prompts of one length.

        Returns:
            The moments of the steps, and the first prompt's tokens.
        """
        token_ids = torch.tensor(prompts, device=self._model.device)
        clock = _Clock()
        with torch.inference_mode():
            self._model.generate(
                token_ids,
                attention_mask=torch.ones_like(token_ids),
                max_new_tokens=max_tokens,
                do_sample=False,
                use_cache=True,
                streamer=clock,
            )
        return clock.timeline


class _Clock(BaseStreamer):
    """Notes when `generate` hands out tokens; the first that it hands out are the prompt's."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_seen:
            self.timeline.add([int(value[0])])
        self._prompt_seen = True

    def end(self) -> None:
        """See BaseStreamer."""


def load_qwen2(checkpoint: Path, config: LLMConfig, dtype: torch.dtype) -> TransformersModel:
    """Returns the language model of a checkpoint of the Qwen2 sizes, on the CPU."""
    tensors = {
        name.removeprefix(PREFIX): tensor.to(dtype)
        for file in weight_files(checkpoint)
        for name, tensor in load_file(file).items()
        if name.startswith(PREFIX)
    }
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of transformers
    model_config = Qwen2Config(**_sizes(config))
    model = Qwen2ForCausalLM.from_pretrained(
        None, config=model_config, state_dict=tensors, dtype=dtype, attn_implementation="sdpa"
    )
    return TransformersModel(model)


def random_llama(config: LLMConfig, device: torch.device, dtype: torch.dtype) -> TransformersModel:
    """Returns a Llama of InternLM2's shape (which is the same mathematics), with random weights."""
    model_config = LlamaConfig(**_sizes(config))
    with device:
        model = LlamaForCausalLM._from_config(  # type: ignore[no-untyped-call]  # of transformers
            model_config, dtype=dtype, attn_implementation="sdpa"
        )
    return TransformersModel(model)


def _sizes(config: LLMConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocabulary_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layer_count,
        "num_attention_heads": config.head_count,
        "num_key_value_heads": config.kv_head_count,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }
