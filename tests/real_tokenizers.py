"""The two tokenizers of the released models, and one of no marks of calls; each is read once."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from llm_service.tokenizer import CHAT_MARKERS, TEMPLATE_TOKENS, Tokenizer
from protos.checkpoint.section import CheckpointError

FOLDER = Path(__file__).parent / "data" / "tokenizers"
CONTROL_TOKENS = ("<s>", "</s>", "<unk>", *TEMPLATE_TOKENS, *CHAT_MARKERS)
FAMILIES = ("internlm2_5", "qwen2_5")
# InternLM2's, its marks of calls under other names: it has those of no format of tools as tokens.
WITHOUT_CALL_MARKS = "internlm2_5 without marks of calls"
CALL_MARKS = re.compile(r"<\|(plugin|interpreter|action_start|action_end)\|>")


@cache
def real_tokenizer(family: str) -> Tokenizer:
    """Returns the tokenizer of a family, "internlm2_5" or "qwen2_5", or WITHOUT_CALL_MARKS."""
    if family != WITHOUT_CALL_MARKS:
        return Tokenizer.from_checkpoint(FOLDER / family)
    with TemporaryDirectory() as folder:
        for file in (FOLDER / "internlm2_5").iterdir():
            renamed = CALL_MARKS.sub(r"[unused \1]", file.read_text(encoding="utf-8"))
            (Path(folder) / file.name).write_text(renamed, encoding="utf-8")
        return Tokenizer.from_checkpoint(Path(folder))


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
