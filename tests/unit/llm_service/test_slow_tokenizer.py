"""Typed tokens against the slow tokenizers of transformers, with which the models were trained.

Theirs is the walk over added tokens; the vocabulary is a byte-level one that is read in no time.
"""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AddedToken, PreTrainedTokenizer

from llm_service.tokenizer import BYTE_OF_CHARACTER, TEMPLATE_TOKENS, Tokenizer
from tests.random_checkpoint import write_random_checkpoint

CHARACTER_OF_BYTE = {byte: character for character, byte in BYTE_OF_CHARACTER.items()}
# Tokens that begin with, end with and hold others, and the pieces of control tokens.
CONTENTS = ("<loc>", "<loc>1", "<loc>12", "oc>1", "1<", "<l>", "<r>", "<|im_", "end|>", "é<")
FLAGS = {"<l>": {"lstrip": True}, "<r>": {"rstrip": True}}
WORDS = [
    *CONTENTS,
    "<",
    "loc>",
    "12",
    " ",
    "\n",
    "\u0301",
    "\u0338",
    "e",
    "ﬁ",
    "<|im_end|>",
    "<img>",
]
CHARACTERS = st.sampled_from(sorted(set("".join(TEMPLATE_TOKENS))))


class SlowTokenizer(PreTrainedTokenizer):
    """Bytes as tokens, in the way of Qwen2's: NFC first, then added tokens, then text."""

    @property
    def vocab_size(self) -> int:
        return 256

    def get_vocab(self) -> dict[str, int]:
        return {**BYTE_OF_CHARACTER, **self.added_tokens_encoder}

    def prepare_for_tokenization(
        self, text: str, is_split_into_words: bool = False, **kwargs: Any
    ) -> tuple[str, dict[str, Any]]:
        return unicodedata.normalize("NFC", text), kwargs

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [CHARACTER_OF_BYTE[byte] for byte in text.encode()]

    def _convert_token_to_id(self, token: str) -> int:
        return BYTE_OF_CHARACTER[token]


@pytest.fixture(scope="module")
def slow() -> SlowTokenizer:
    tokens = {
        268 + index: AddedToken(content, normalized=False, **FLAGS.get(content, {}))
        for index, content in enumerate(CONTENTS)
    }
    return SlowTokenizer(added_tokens_decoder=tokens)  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("added")
    write_random_checkpoint(folder)
    document = json.loads((folder / "tokenizer.json").read_text())
    document["normalizer"] = {"type": "NFC"}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    tokens = {content: {"content": content, **FLAGS.get(content, {})} for content in CONTENTS}
    decoder = {str(268 + index): token for index, token in enumerate(tokens.values())}
    config = {"added_tokens_decoder": decoder}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.from_checkpoint(folder)


@settings(max_examples=150)
@given(text=st.lists(st.sampled_from(WORDS), max_size=12).map("".join))
def test_typed_tokens_are_those_of_the_slow_tokenizer(
    slow: SlowTokenizer, ours: Tokenizer, text: str
) -> None:
    assert ours.encode(text) == slow.encode(text, add_special_tokens=False)


@settings(max_examples=100)
@given(text=st.lists(st.sampled_from(WORDS) | CHARACTERS, max_size=12).map("".join))
def test_no_pieces_make_a_control_token(ours: Tokenizer, text: str) -> None:
    control = {ours.special_id(content) for content in TEMPLATE_TOKENS}
    assert not control & set(ours.encode(text))
