"""Matchers of guides over the real vocabularies, and outputs that follow their masks."""

from __future__ import annotations

import asyncio
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from llm_service.engines.base import Account
from llm_service.engines.guides import GuideCompiler, TokenMatcher
from llm_service.sampling import OutputGuide
from llm_service.tokenizer import MESSAGE_END
from tests.real_tokenizers import WITHOUT_CALL_MARKS, real_tokenizer

# Sizes of the released models' embeddings, larger than the tokenizers' highest ids.
VOCABULARY_SIZES = {"internlm2_5": 92553, WITHOUT_CALL_MARKS: 92553, "qwen2_5": 151674}


@cache
def compiler(family: str) -> GuideCompiler:
    return GuideCompiler(real_tokenizer(family), VOCABULARY_SIZES[family])


def end_token(family: str) -> int:
    return real_tokenizer(family).special_id(MESSAGE_END)


def new_matcher(family: str, guide: OutputGuide, *stop_token_ids: int) -> TokenMatcher:
    ends = frozenset(stop_token_ids or [end_token(family)])
    return asyncio.run(compiler(family).matcher(guide, ends, Account()))


def allowed_ids(family: str, matcher: TokenMatcher) -> npt.NDArray[np.int64]:
    row = torch.zeros(-(-VOCABULARY_SIZES[family] // 32), dtype=torch.int32)
    matcher.fill_mask(row)
    bits = np.unpackbits(row.numpy().view(np.uint8), bitorder="little")
    return bits.nonzero()[0]


def allowed(family: str, matcher: TokenMatcher) -> list[int]:
    ids: list[int] = allowed_ids(family, matcher).tolist()
    return ids


@cache
def ids_by_text(family: str) -> dict[bytes, list[int]]:
    ids: dict[bytes, list[int]] = {}
    for token_id in range(VOCABULARY_SIZES[family]):
        ids.setdefault(real_tokenizer(family).token_bytes(token_id), []).append(token_id)
    return ids


def follow(family: str, matcher: TokenMatcher, text: str) -> None:
    """Writes a text in the longest tokens that are allowed."""
    ids, rest = ids_by_text(family), text.encode()
    while rest:
        possible = {*allowed(family, matcher)}
        token_id, size = next(
            (token_id, size)
            for size in range(len(rest), 0, -1)
            for token_id in ids.get(rest[:size], ())
            if token_id in possible
        )
        matcher.accept(token_id)
        rest = rest[size:]


def write(family: str, matcher: TokenMatcher, text: str) -> None:
    for token_id in real_tokenizer(family).encode(text):
        assert token_id in allowed_ids(family, matcher)
        matcher.accept(token_id)
