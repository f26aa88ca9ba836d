"""The two tokenizers of the released models, each read once for all tests."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from llm_service.tokenizer import Tokenizer

FOLDER = Path(__file__).parent / "data" / "tokenizers"
FAMILIES = ("internlm2_5", "qwen2_5")


@cache
def real_tokenizer(family: str) -> Tokenizer:
    """Returns the tokenizer of a family, "internlm2_5" or "qwen2_5"."""
    return Tokenizer.from_checkpoint(FOLDER / family)
