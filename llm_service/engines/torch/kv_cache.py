"""The KV cache's memory: how large it is where nobody says, and how it is taken."""

from __future__ import annotations

import mmap
from math import prod

import torch

from llm_service.checkpoint import LLMConfig
from llm_service.memory import kv_byte_count
from protos.process.memory import FreeMemory
from protos.process.settings import GIB, MIB

# A picture of 13 tiles, a question and an answer.
USUAL_REQUEST_TOKEN_COUNT = 4096
USUAL_REQUEST_COUNT = 8
# A small model's cache is filled quickly, and takes no memory before.
LEAST_WANTED_BYTE_COUNT = 256 * MIB
# Where nothing tells what is free.
UNMEASURED_BYTE_COUNT = GIB
CPU_MEMORY_SHARE = 0.25


def cpu_kv_cache_byte_count(config: LLMConfig, itemsize: int, free: FreeMemory | None) -> int:
    """Returns the cache's size on a CPU: for one whole context, and for 8 usual requests.

    Args:
        config: of the checkpoint.
        itemsize: bytes of one of its numbers.
        free: the memory that the weights leave, of which it takes at most a quarter.
    """
    usual_token_count = USUAL_REQUEST_COUNT * USUAL_REQUEST_TOKEN_COUNT
    token_count = max(config.max_position_embeddings, usual_token_count)
    wanted = max(kv_byte_count(config, token_count, itemsize), LEAST_WANTED_BYTE_COUNT)
    if free is None:
        return min(wanted, UNMEASURED_BYTE_COUNT)
    return min(wanted, int(CPU_MEMORY_SHARE * free.byte_count))


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Returns zeros; on the CPU they take no memory before something else is written there.

    Raises:
        OSError: there is too little memory.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    pages = mmap.mmap(-1, prod(shape) * dtype.itemsize, flags)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
