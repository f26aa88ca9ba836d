"""Which kernels a device gets: the one place that knows both."""

from __future__ import annotations

import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.torch.kernels.base import Kernels
from llm_service.engines.torch.kernels.torch_kernels import TorchKernels


def kernels_for(device: torch.device, config: LLMConfig) -> Kernels:
    """Returns the fastest kernels for a device: Triton's on CUDA, where PyTorch brings it."""
    if device.type == "cuda":
        try:
            from llm_service.engines.torch.kernels.triton_kernels import TritonKernels
        except ImportError:
            return TorchKernels()
        return TritonKernels(config.head_count // config.kv_head_count)
    return TorchKernels()
