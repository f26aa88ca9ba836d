"""Why a decoder's numbers are not finite, and what to do about it, in words."""

from __future__ import annotations

import torch

from llm_service.engines.base import dtype_name
from llm_service.engines.torch.decoder import Decoder
from llm_service.engines.torch.weights import destinations


def not_finite(dtype: torch.dtype) -> str:
    """Returns what to tell whoever asked for tokens that cannot be computed in a type."""
    return f"the language model's numbers are not finite in {dtype_name(dtype)}{_remedy(dtype)}"


def broken_start(decoder: Decoder) -> str:
    """Returns why a decoder whose first logits are not finite cannot be served."""
    dtype = decoder.dtype
    for name, destination in destinations(decoder).items():
        if any(part.isnan().any() for part in destination.parts):
            return f"the weights themselves are not finite: the checkpoint's {name} holds NaN"
        if any(part.isinf().any() for part in destination.parts):
            return f"the checkpoint's {name} is not finite in {dtype_name(dtype)}{_remedy(dtype)}"
    found = f"the logits of the language model are not finite in {dtype_name(dtype)}"
    return found + (_remedy(dtype) or ", though each of its weights is")


def _remedy(dtype: torch.dtype) -> str:
    if dtype != torch.float16:
        return ""
    return ", which ends at 65504: serve it with --torch.dtype bfloat16 or float32"
