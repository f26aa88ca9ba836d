"""What the language model is built into: types, and the GPUs that it is split over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from llm_service.checkpoint import LLMConfig

Dtype = Literal["bfloat16", "float16"]
Quantization = Literal["none", "w8a16", "w4a16"]

# TensorRT-LLM lays int8 and int4 weights out in tiles of 64 inputs (128 bytes of activations) on
# GPUs before Hopper, and its checks refuse a matrix whose inputs are not a multiple of that.
QUANTIZED_INPUT_TILE = 64


class BuildError(Exception):
    """The model cannot be built this way, or its folders do not allow it."""


@dataclass(frozen=True)
class Rank:
    """One GPU's part of the model.

    Attributes:
        tp_index: which share of every matrix it has.
        pp_index: which stage of the layers it has.
    """

    tp_index: int
    pp_index: int


@dataclass(frozen=True)
class Target:
    """What the language model is built into.

    Attributes:
        dtype: of weights, activations and KV cache.
        quantization: bits of the weights (8 or 4) and of the activations (16); TensorRT-LLM
            quantises when it builds the engine, so the checkpoint only declares it.
        tp: GPUs that share every layer (tensor parallelism).
        pp: stages that the layers are divided into (pipeline parallelism).
    """

    dtype: Dtype = "bfloat16"
    quantization: Quantization = "none"
    tp: int = 1
    pp: int = 1

    @property
    def ranks(self) -> list[Rank]:
        """All GPUs in TensorRT-LLM's order: the shares of the first stage first."""
        return [Rank(share, stage) for stage in range(self.pp) for share in range(self.tp)]

    def check(self, config: LLMConfig) -> None:
        """Raises BuildError if the model cannot be split or quantised in this way."""
        if not _divides(self.tp, config):
            raise BuildError(
                f"--tp {self.tp} must divide {config.head_count} attention heads and intermediate "
                f"size {config.intermediate_size}, and divide {config.kv_head_count} key/value "
                f"heads or be a multiple of them: {_choices(_shares(config))} would do"
            )
        if self.quantization != "none" and _has_broken_tiles(self.tp, config):
            whole = [tp for tp in _shares(config) if not _has_broken_tiles(tp, config)]
            raise BuildError(
                f"--quantization {self.quantization} needs matrices with a multiple of "
                f"{QUANTIZED_INPUT_TILE} inputs on each GPU; with --tp {self.tp} they have "
                f"{_input_counts(self.tp, config)}: --tp {_choices(whole)} would do, and "
                "--pp splits further"
            )
        if config.layer_count % self.pp:
            stages = [pp for pp in range(1, config.layer_count + 1) if config.layer_count % pp == 0]
            raise BuildError(
                f"--pp {self.pp} must divide {config.layer_count} layers: "
                f"{_choices(stages)} would do"
            )


def _shares(config: LLMConfig) -> list[int]:
    return [tp for tp in range(1, config.head_count + 1) if _divides(tp, config)]


def _divides(tp: int, config: LLMConfig) -> bool:
    """Whether each GPU gets whole heads: with more GPUs than key/value heads, copies of one."""
    kv_heads = config.kv_head_count
    has_whole_kv_heads = kv_heads % tp == 0 or tp % kv_heads == 0
    return has_whole_kv_heads and not (config.head_count % tp or config.intermediate_size % tp)


def _input_counts(tp: int, config: LLMConfig) -> list[int]:
    """Columns that a GPU has of the layers' matrices: qkv, fc and gate; dense; proj."""
    heads_width = config.head_count * config.head_dim
    return [config.hidden_size, heads_width // tp, config.intermediate_size // tp]


def _has_broken_tiles(tp: int, config: LLMConfig) -> bool:
    return any(count % QUANTIZED_INPUT_TILE for count in _input_counts(tp, config))


def _choices(numbers: Iterable[int]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last
