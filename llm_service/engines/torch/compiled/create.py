"""Which decoder gets a compiled step: the place that knows whether numba is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import torch

from llm_service.engines.torch.decoder import Decoder

if TYPE_CHECKING:
    from llm_service.engines.torch.compiled.decode import CompiledDecode

# What the programs compute with; float16 is for GPUs.
DTYPES = (torch.float32, torch.bfloat16)
logger = structlog.get_logger()


def compiled_decode(
    decoder: Decoder, kv_cache: torch.Tensor, rotation: torch.Tensor
) -> CompiledDecode | None:
    """Returns the compiled step of a decoder on a CPU; None: it decodes by itself.

    Args:
        decoder: with its weights.
        kv_cache: as CompiledDecode takes it.
        rotation: likewise.
    """
    if kv_cache.device.type != "cpu" or decoder.dtype not in DTYPES or decoder.is_fp8:
        return None
    try:
        from llm_service.engines.torch.compiled.decode import CompiledDecode
    except ImportError as error:  # an image made for TensorRT-LLM has no numba
        logger.warning("decode_not_compiled", error=str(error))
        return None
    return CompiledDecode(decoder, kv_cache, rotation)
