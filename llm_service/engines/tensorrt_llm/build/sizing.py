"""What an engine is built to take, and the memory that this needs on each GPU."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from llm_service.checkpoint import LLMConfig
from llm_service.engines.tensorrt_llm.build.layout import TargetTensor, rank_tensors
from llm_service.engines.tensorrt_llm.build.quantities import GIB, in_bytes
from llm_service.engines.tensorrt_llm.build.target import BuildError, Target
from llm_service.engines.tensorrt_llm.build.tensor_file import ITEM_BYTE_COUNT

# The KV cache is handed out by blocks of so many tokens: trtllm-build's default, tokens_per_block.
TOKENS_PER_BLOCK = 32
# Estimates, for a process on its GPU: CUDA's context with the kernels of all libraries, and the
# buffers of NCCL where there are several GPUs.
CUDA_BYTE_COUNT = GIB // 2
NCCL_BYTE_COUNT = GIB // 2
# Bits of a weight in the matrices that TensorRT-LLM quantises; the embedding and the head stay.
WEIGHT_BITS = {"none": 16, "w8a16": 8, "w4a16": 4}
QUANTIZED = ("qkv.weight", "dense.weight", "fc.weight", "gate.weight", "proj.weight")


@dataclass(frozen=True)
class Card:
    """The GPU of this machine.

    Attributes:
        name: e.g. "NVIDIA H100 80GB HBM3".
        byte_count: all of its memory.
    """

    name: str
    byte_count: int


@dataclass(frozen=True)
class Limits:
    """What an engine is built to take.

    Attributes:
        max_running_sequence_count: sequences that are generated at the same time.
        max_request_tile_count: image tiles of one request, thumbnails included.
        max_prompt_token_count: tokens of one prompt, those of the images included.
        max_output_token_count: tokens of one answer.
        rows_per_tile: of the checkpoint; as many tokens of the prompt.
    """

    max_running_sequence_count: int
    max_request_tile_count: int
    max_prompt_token_count: int
    max_output_token_count: int
    rows_per_tile: int

    def __post_init__(self) -> None:
        """Raises BuildError if the tiles alone are longer than a prompt may be."""
        image_token_count = self.max_request_tile_count * self.rows_per_tile
        if image_token_count > self.max_prompt_token_count:
            raise BuildError(
                f"--max-request-tile-count {self.max_request_tile_count} takes "
                f"{image_token_count} tokens; "
                f"--max-prompt-token-count is {self.max_prompt_token_count}"
            )

    @property
    def total_token_count(self) -> int:
        """Tokens of prompt and answer together."""
        return self.max_prompt_token_count + self.max_output_token_count

    @property
    def reserved_token_count(self) -> int:
        """Tokens of one sequence that the KV cache has room for: all, in whole blocks."""
        return -(-self.total_token_count // TOKENS_PER_BLOCK) * TOKENS_PER_BLOCK

    @property
    def table_row_count(self) -> int:
        """Rows of the prompt tables of all requests that generate at the same time."""
        return self.max_running_sequence_count * self.max_request_tile_count * self.rows_per_tile


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest GPU; an estimate, but for the tensors' own sizes.

    Attributes:
        weights: the rank's tensors, quantised.
        kv_per_token: keys and values of one token.
        kv_cache: those of all requests at their full length.
        prompt_tables: of all requests.
        activations: of one step over the longest prompt.
        libraries: CUDA and, with several GPUs, NCCL.
    """

    weights: int
    kv_per_token: int
    kv_cache: int
    prompt_tables: int
    activations: int
    libraries: int

    @property
    def total(self) -> int:
        """What a GPU needs to serve all requests at their full length."""
        tensors = self.weights + self.kv_cache + self.prompt_tables + self.activations
        return tensors + self.libraries


def memory(config: LLMConfig, target: Target, limits: Limits) -> Memory:
    """Returns what the fullest GPU needs."""
    ranks = [rank_tensors(config, target, rank) for rank in target.ranks]
    kv_heads = max(1, config.kv_head_count // target.tp)
    kv_per_token = config.kv_values_per_token(target.tp, target.pp) * ITEM_BYTE_COUNT
    # Of the widest point of a layer: residual and its norm; the attention's output, before or after
    # its projection; qkv; fc, gate.
    heads_width = config.head_count * config.head_dim // target.tp
    width = (
        2 * config.hidden_size
        + max(config.hidden_size, heads_width)
        + (config.head_count // target.tp + 2 * kv_heads) * config.head_dim
        + 2 * config.intermediate_size // target.tp
    )
    return Memory(
        weights=max(sum(_byte_count(tensor, target) for tensor in tensors) for tensors in ranks),
        kv_per_token=kv_per_token,
        kv_cache=kv_per_token * limits.max_running_sequence_count * limits.reserved_token_count,
        prompt_tables=limits.table_row_count * config.hidden_size * ITEM_BYTE_COUNT,
        activations=limits.max_prompt_token_count * width * ITEM_BYTE_COUNT,
        libraries=CUDA_BYTE_COUNT + (NCCL_BYTE_COUNT if len(ranks) > 1 else 0),
    )


def _byte_count(tensor: TargetTensor, target: Target) -> int:
    bits = WEIGHT_BITS[target.quantization] if tensor.name.endswith(QUANTIZED) else 16
    return prod(tensor.shape) * bits // 8


def report(
    name: str, config: LLMConfig, target: Target, limits: Limits, card: Card | None
) -> list[str]:
    """Returns the arithmetic as lines of text, and how it compares with the card if there is one.

    The last line is the option with which internvl-llm gives the KV cache just its room, whatever
    else is on the GPU: without it the cache takes a share of the memory that is free at the start.

    Args:
        name: of the model.
        config: of the model.
        target: types and split.
        limits: what the engine takes.
        card: this machine's GPU; None if it has none.
    """
    needs = memory(config, target, limits)
    weights = {"none": target.dtype}.get(target.quantization, target.quantization)
    prompt, output = limits.max_prompt_token_count, limits.max_output_token_count
    sequences, tiles = limits.max_running_sequence_count, limits.max_request_tile_count
    return [
        f"{name}: {weights} weights on {target.tp * target.pp} GPU(s), "
        f"tp {target.tp} x pp {target.pp}",
        f"sequence       {prompt:,} in + {output:,} out = {limits.total_token_count:,} tokens"
        f"{_position_note(config, limits)}",
        f"prompt tables  {sequences} requests x {tiles} tiles x {limits.rows_per_tile} "
        f"= {limits.table_row_count:,} rows, {in_bytes(needs.prompt_tables)}",
        f"KV cache       {needs.kv_per_token:,} bytes a token x {sequences} "
        f"x {limits.reserved_token_count:,} = {in_bytes(needs.kv_cache)}",
        f"weights        {in_bytes(needs.weights)}",
        f"activations    about {in_bytes(needs.activations)}",
        f"CUDA, NCCL     about {in_bytes(needs.libraries)}",
        f"each GPU       about {in_bytes(needs.total)}{_verdict(needs, card)}",
        f"serve with     --kv-cache-byte-count {needs.kv_cache}",
    ]


def _position_note(config: LLMConfig, limits: Limits) -> str:
    positions = config.max_position_embeddings
    if limits.total_token_count <= positions:
        return ""
    return f"; the service ends a sequence at {positions:,}, the model's last position"


def _verdict(needs: Memory, card: Card | None) -> str:
    if card is None:
        return "; this machine shows no GPU to compare with"
    if needs.total > card.byte_count:
        return (
            f", MORE than the {in_bytes(card.byte_count)} of {card.name}: "
            "raise --tp or --pp, quantise, or lower the limits"
        )
    left = in_bytes(card.byte_count - needs.total)
    return (
        f" of the {in_bytes(card.byte_count)} of {card.name}; "
        f"{left} are left, for the vision service if it shares the GPU"
    )
