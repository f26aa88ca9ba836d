"""What memory a start needs, what there is, and what to do where that is too little."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import EngineStartError, dtype_name
from llm_service.engines.torch.kv_cache import cpu_kv_cache_byte_count
from llm_service.engines.torch.quantization import computes_fp8
from llm_service.engines.torch.weights import StoredTypes
from llm_service.memory import weight_byte_count
from llm_service.settings import Settings
from protos.errors import OverloadedError
from protos.process.memory import FreeMemory, free_host_memory, gib, is_out_of_memory, shortage


@dataclass(frozen=True)
class StartMemory:
    """The memory of one start, as it is before anything is loaded.

    Attributes:
        weights: bytes of the weights.
        kv_cache: bytes of the KV cache; 0 where it takes a share of what the weights leave.
        free: what the device has for both; None where nothing tells.
        dtype: type of the KV cache.
        stored: types of the weights.
        is_cuda: whether they go to a GPU.
    """

    weights: int
    kv_cache: int
    free: FreeMemory | None
    dtype: torch.dtype
    stored: StoredTypes
    is_cuda: bool

    @classmethod
    def of(
        cls,
        settings: Settings,
        config: LLMConfig,
        device: torch.device,
        dtype: torch.dtype,
        stored: StoredTypes,
    ) -> StartMemory:
        is_cuda = device.type == "cuda"
        free = _free_on_gpu(device) if is_cuda else free_host_memory()
        types = (stored.matrices, stored.embedding, stored.head)
        weights = weight_byte_count(config, *(it.itemsize for it in types))
        kv_cache = settings.kv_cache_byte_count or 0
        if not (kv_cache or is_cuda):
            left = free and replace(free, byte_count=max(0, free.byte_count - weights))
            kv_cache = cpu_kv_cache_byte_count(config, dtype.itemsize, left)
        return cls(weights, kv_cache, free, dtype, stored, is_cuda)

    def check(self) -> None:
        """Refuses a start that cannot end well, before it takes minutes or the whole machine.

        Raises:
            EngineStartError: weights and KV cache alone are more than there is.
        """
        if self.free is not None and self.weights + self.kv_cache > self.free.byte_count:
            raise self._shortage()

    @contextmanager
    def enough(self) -> Iterator[None]:
        """Says of the block's errors which mean that the memory has turned out to be too little.

        Raises:
            EngineStartError: it has.
        """
        try:
            yield
        except (RuntimeError, MemoryError, OSError, OverloadedError) as error:
            if isinstance(error, OverloadedError) or is_out_of_memory(error):
                raise self._shortage() from error
            raise

    def _shortage(self) -> EngineStartError:
        needs = [f"the weights take {gib(self.weights)} in {dtype_name(self.stored.matrices)}"]
        if self.kv_cache:
            needs.append(f"the KV cache {gib(self.kv_cache)}")
        return EngineStartError(shortage(needs, self.free, self._ways()))

    def _ways(self) -> list[str]:
        left = 0 if self.free is None else self.free.byte_count - self.weights
        ways = []
        if self.kv_cache and left > 0:
            ways.append(f"--kv-cache-byte-count of less than {int(left)}")
        if self.is_cuda and not self.kv_cache and left > 0:
            ways.append("a smaller --kv-cache-fraction")
        if self.dtype == torch.float32:
            halved = "both" if self.stored.matrices == self.dtype else "the KV cache"
            ways.append(f"--torch.dtype bfloat16, which halves {halved}")
        is_quantised = self.stored.matrices.itemsize == 1
        if not self.is_cuda and not is_quantised and self.weights > self.kv_cache:
            ways.append("--quantization int8, which halves all weights but the embedding")
        if self.is_cuda and self.stored.matrices == torch.bfloat16 and computes_fp8():
            ways.append("--quantization fp8, which halves all weights but embedding and head")
        if self.is_cuda:
            ways.append("--engine tensorrt_llm with an engine built for several GPUs (--tp)")
        return [*ways, "a smaller model"]


def _free_on_gpu(device: torch.device) -> FreeMemory:
    byte_count, _ = torch.cuda.mem_get_info(device)
    return FreeMemory(byte_count, "are free on the GPU")
