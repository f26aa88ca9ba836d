"""Why a decoder's numbers are not finite, and what to do about it, in words."""

from __future__ import annotations

import torch

from llm_service.engines.torch.decoder import Decoder
from llm_service.engines.torch.weights import destinations


def not_finite(dtype: torch.dtype) -> str:
    """Returns what to tell whoever asked for tokens that cannot be computed in a type."""
    return f"the language model's numbers are not finite in {_name(dtype)}{_remedy(dtype)}"


def broken_start(decoder: Decoder) -> str:
    """Returns why a decoder whose first logits are not finite cannot be served."""
    dtype = decoder.embedding.weight.dtype
    for name, destination in destinations(decoder).items():
        if any(view.isnan().any() for view in destination.views):
            return f"the weights themselves are not finite: the checkpoint's {name} holds NaN"
        if any(view.isinf().any() for view in destination.views):
            return f"the checkpoint's {name} is not finite in {_name(dtype)}{_remedy(dtype)}"
    return f"the logits of the language model are not finite in {_name(dtype)}{_remedy(dtype)}"


def _remedy(dtype: torch.dtype) -> str:
    if dtype != torch.float16:
        return ", though each of its weights is"
    return ", which ends at 65504: serve it with --torch.dtype bfloat16 or float32"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
