"""Page-locked host memory for the host cache: whether there is enough, and how it is taken."""

from __future__ import annotations

import contextlib
import mmap
import weakref
from typing import Any

import torch

from llm_service.engines.base import EngineStartError
from llm_service.settings import TorchOptions
from protos.process.memory import free_host_memory, gib, shortage


def check_host_cache(options: TorchOptions, device: torch.device) -> None:
    """Refuses a host cache that cannot be had, before anything is loaded.

    Raises:
        EngineStartError: it is larger than the free memory, or the KV cache is no GPU's.
    """
    byte_count = options.host_cache_byte_count
    if not byte_count:
        return
    if device.type != "cuda":
        raise EngineStartError(
            f"host_cache_byte_count is {byte_count}, but on a CPU the KV cache itself is in host"
            " memory: serve it with a larger --kv-cache-byte-count instead"
        )
    free = free_host_memory()
    if free is not None and byte_count > free.byte_count:
        needs = [f"the host cache takes {gib(byte_count)}"]
        ways = [f"--torch.host-cache-byte-count of less than {free.byte_count}"]
        raise EngineStartError(shortage(needs, free, ways))


def page_locked(byte_count: int) -> torch.Tensor:
    """Returns memory [byte_count] uint8 that a GPU copies from and to at the bus's rate.

    PyTorch's own allocator would take the next power of two.

    Raises:
        EngineStartError: the system does not give so much, or does not lock it.
    """
    try:
        pages = mmap.mmap(-1, byte_count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise _refusal(byte_count, "had", str(error)) from error
    with contextlib.suppress(OSError):  # a kernel may have none
        pages.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(pages, dtype=torch.uint8)
    if code := int(_cuda().cudaHostRegister(memory.data_ptr(), byte_count, 0)):
        raise _refusal(byte_count, "page-locked", f"CUDA error {code}")
    weakref.finalize(pages, _unlock, memory.data_ptr()).atexit = False
    return memory


def _refusal(byte_count: int, participle: str, reason: str) -> EngineStartError:
    return EngineStartError(
        f"{gib(byte_count)} of host memory cannot be {participle} ({reason}): serve it with a"
        " smaller --torch.host-cache-byte-count"
    )


def _unlock(address: int) -> None:
    torch.cuda.synchronize()  # copies from and to it may be under way
    _cuda().cudaHostUnregister(address)


def _cuda() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call] # PyTorch's
