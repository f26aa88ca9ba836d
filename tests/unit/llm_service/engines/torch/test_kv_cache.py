"""The KV cache's size on a CPU, and that it takes memory only where it is used."""

from __future__ import annotations

from dataclasses import replace

import psutil
import pytest
import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.torch.kv_cache import cpu_kv_cache_byte_count, zeros
from protos.process.memory import FreeMemory
from protos.process.settings import GIB, MIB
from tests.benchmarks.shapes import CONFIGS

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("size", "free", "tokens"),
    [
        ("1B", 100 * GIB, 32_768),
        ("8B", 100 * GIB, 32_768),
        ("8B", 8 * GIB, 16_384),
        ("8B", 0, 0),
        ("1B", None, 32_768),
        ("8B", None, 8192),
    ],
)
def test_it_fits_the_model_and_the_machine(size: str, free: int | None, tokens: int) -> None:
    config = LLMConfig.from_checkpoint(CONFIGS / f"InternVL2_5-{size}")
    memory = None if free is None else FreeMemory(free, "are free here")
    byte_count = cpu_kv_cache_byte_count(config, 2, memory)
    assert byte_count == tokens * config.kv_values_per_token() * 2


def test_a_small_model_has_room_for_many_and_a_long_context_for_one() -> None:
    config = LLMConfig.from_checkpoint(CONFIGS / "InternVL2_5-1B")
    memory = FreeMemory(100 * GIB, "are free here")
    small = replace(config, layer_count=1)
    assert cpu_kv_cache_byte_count(small, 2, memory) == 256 * MIB
    long = replace(config, max_position_embeddings=100_000)
    assert cpu_kv_cache_byte_count(long, 2, memory) == 100_000 * 24 * 2 * 2 * 64 * 2


def test_zeros_take_memory_where_they_are_written() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    cache = zeros((4, 2, 1024, 16, 2, 256), torch.bfloat16, CPU)
    assert cache.nbytes == 128 * MIB
    assert process.memory_info().rss - before < 16 * MIB
    cache[0, 0] = 1
    assert float(cache.sum(dtype=torch.float32)) == 1024 * 16 * 2 * 256


def test_more_zeros_than_there_is_address_space_are_an_error() -> None:
    with pytest.raises((OSError, MemoryError)):
        zeros((2**50,), torch.bfloat16, CPU)
