"""Streamed text equal to what the reference's tokenizer decodes at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_service.detokenizer import Detokenizer
from tests.parity import golden
from tests.real_tokenizers import FAMILIES, control_ids, real_tokenizer


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("skip_special_tokens", [True, False], ids=["skip", "keep"])
def test_text_streamed_token_by_token(
    golden_dir: Path, family: str, skip_special_tokens: bool
) -> None:
    cases = _cases(golden_dir, family)
    tokenizer = real_tokenizer(family)
    key = "decode_skip_special" if skip_special_tokens else "decode_keep_special"
    for case in cases:
        detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
        deltas = [detokenizer.push([token_id]) for token_id in case["ids"]]
        assert "".join(deltas) + detokenizer.finish() == case[key]
        assert sum(delta.count("\ufffd") for delta in deltas) == case[key].count("\ufffd")


@pytest.mark.parametrize("family", FAMILIES)
def test_encoding_is_the_reference_one(golden_dir: Path, family: str) -> None:
    cases = _cases(golden_dir, family)
    tokenizer = real_tokenizer(family)
    for case in cases:
        if not control_ids(tokenizer).intersection(case["ids"]):
            assert tokenizer.encode(case["text"]) == case["ids"]


def _cases(golden_dir: Path, family: str) -> list[dict[str, Any]]:
    cases: dict[str, list[dict[str, Any]]] = golden.read_json(golden_dir / "detok.json")["cases"]
    if family not in cases:
        pytest.skip(f"the golden data has no texts for {family}")
    return cases[family]
