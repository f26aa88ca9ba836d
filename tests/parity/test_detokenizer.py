"""Streamed text equal to what the reference's tokenizer decodes at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_service.detokenizer import Detokenizer
from tests.parity import golden
from tests.real_tokenizers import FAMILIES, real_tokenizer


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("skip_special_tokens", [True, False], ids=["skip", "keep"])
def test_text_streamed_token_by_token(
    golden_dir: Path, family: str, skip_special_tokens: bool
) -> None:
    cases = golden.read_json(golden_dir / "detok.json")["cases"]
    tokenizer = real_tokenizer(family)
    key = "decode_skip_special" if skip_special_tokens else "decode_keep_special"
    for case in cases.get(family, []):
        detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
        deltas = [detokenizer.push([token_id]) for token_id in case["ids"]]
        assert "".join(deltas) + detokenizer.finish() == case[key]
        assert not any("\ufffd" in delta for delta in deltas)


@pytest.mark.parametrize("family", FAMILIES)
def test_encoding_is_the_reference_one(golden_dir: Path, family: str) -> None:
    cases = golden.read_json(golden_dir / "detok.json")["cases"]
    tokenizer = real_tokenizer(family)
    for case in cases.get(family, []):
        if not any(tokenizer.is_special(token_id) for token_id in case["ids"]):
            assert tokenizer.encode(case["text"]) == case["ids"]
