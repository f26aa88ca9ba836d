"""The two tokenizers of the released models, each read once for all tests."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from llm_service.tokenizer import CHAT_MARKERS, TEMPLATE_TOKENS, Tokenizer
from protos.checkpoint.section import CheckpointError

FOLDER = Path(__file__).parent / "data" / "tokenizers"
CONTROL_TOKENS = ("<s>", "</s>", "<unk>", *TEMPLATE_TOKENS, *CHAT_MARKERS)
FAMILIES = ("internlm2_5", "qwen2_5")


@cache
def real_tokenizer(family: str) -> Tokenizer:
    """Returns the tokenizer of a family, "internlm2_5" or "qwen2_5"."""
    return Tokenizer.from_checkpoint(FOLDER / family)


def has_token(tokenizer: Tokenizer, content: str) -> bool:
    """Returns whether there is such a token beside the vocabulary."""
    try:
        tokenizer.special_id(content)
    except CheckpointError:
        return False
    return True


def control_ids(tokenizer: Tokenizer) -> set[int]:
    """Returns the tokens that no text becomes."""
    known = (content for content in CONTROL_TOKENS if has_token(tokenizer, content))
    return {tokenizer.special_id(content) for content in known}
