"""Which quantization a device computes with."""

from __future__ import annotations

import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import EngineStartError, dtype_name
from llm_service.settings import Quantization

# The first GPUs whose matrix units take float8.
FP8_CAPABILITY = (8, 9)
# cuBLAS takes float8 matrices whose rows and columns are multiples of this.
FP8_MULTIPLE = 16


def check_quantization(
    quantization: Quantization, config: LLMConfig, device: torch.device, dtype: torch.dtype
) -> None:
    """Refuses what would fail, or compute nonsense.

    Raises:
        EngineStartError: the device or the type of activations does not go with the quantization,
            or the matrices are too odd for it.
    """
    is_cuda = device.type == "cuda"
    if quantization == "int8" and is_cuda:
        raise EngineStartError(
            "quantization is int8, with which a CPU alone computes: serve it with --device cpu,"
            " with --quantization fp8 or without --quantization"
        )
    if quantization == "int8" and dtype == torch.float16:
        raise EngineStartError(
            "dtype is float16, in which sums of int8 numbers overflow:"
            " serve it with --dtype bfloat16 or float32, or without --quantization"
        )
    if quantization == "fp8" and is_cuda:
        _check_fp8(config, dtype)


def computes_fp8() -> bool:
    """Returns whether the GPU's matrix units take float8."""
    return torch.cuda.get_device_capability() >= FP8_CAPABILITY


def _check_fp8(config: LLMConfig, dtype: torch.dtype) -> None:
    if not computes_fp8():
        major, minor = torch.cuda.get_device_capability()
        raise EngineStartError(
            f"quantization is fp8, but the GPU has compute capability {major}.{minor}, and 8.9 is"
            " the first with float8: serve it without --quantization"
        )
    if dtype != torch.bfloat16:
        raise EngineStartError(
            f"dtype is {dtype_name(dtype)}, but a GPU's products in fp8 are bfloat16: serve it"
            " with --dtype bfloat16, or without --quantization"
        )
    width = config.head_count * config.head_dim
    sizes = config.hidden_size, width, config.kv_head_count * config.head_dim
    if any(size % FP8_MULTIPLE for size in (*sizes, config.intermediate_size)):
        raise EngineStartError(
            "quantization is fp8, for which a GPU needs matrices with multiples of 16 rows and"
            " columns, which the checkpoint's are not: serve it without --quantization"
        )
