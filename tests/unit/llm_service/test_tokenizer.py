from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor

from llm_service.tokenizer import Tokenizer, TokenizerError
from tests.real_tokenizers import FAMILIES, FOLDER, real_tokenizer

TEXTS = [
    "Hello, world!",
    "  two leading spaces",
    "a\tb  c\n\n d",
    "这张图片展示了一只红熊猫。",
    "🐼👩‍👩‍👧 café naïve 한국어",
    "def f(x):\n    return  x**2  # “quotes” ①②③ ﬁ",
    "1234567890 3.14",
    "<s></s><unk>",
]


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_in_text_stay_text(family: str) -> None:
    tokenizer = real_tokenizer(family)
    document = json.loads((FOLDER / family / "tokenizer.json").read_text())
    contents = {token["content"]: token["id"] for token in document["added_tokens"]}
    ids = tokenizer.encode("".join(contents))
    assert not set(ids) & set(contents.values())
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == "".join(contents)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", TEXTS)
def test_ids_give_the_texts_bytes_back(family: str, text: str) -> None:
    tokenizer = real_tokenizer(family)
    # Qwen's tokenizer normalises to NFC; these texts are NFC already.
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))).decode() == text


def test_vocab_and_merges_equal_tokenizer_json(tmp_path: Path) -> None:
    document = json.loads((FOLDER / "qwen2_5" / "tokenizer.json").read_text())
    merges = "\n".join(["#version: 0.2", *document["model"]["merges"]])
    (tmp_path / "vocab.json").write_text(json.dumps(document["model"]["vocab"]))
    (tmp_path / "merges.txt").write_text(merges + "\n")
    _copy_config("qwen2_5", tmp_path)
    from_parts = Tokenizer.from_checkpoint(tmp_path)
    whole = real_tokenizer("qwen2_5")
    assert [from_parts.encode(text) for text in TEXTS] == [whole.encode(text) for text in TEXTS]
    assert from_parts.special_id("<img>") == 151665
    assert from_parts.bos_id is None


def test_special_tokens_come_from_added_tokens_json_too(tmp_path: Path) -> None:
    """The base model's tokenizer.json, copied beside InternVL's own added_tokens.json."""
    document = json.loads((FOLDER / "qwen2_5" / "tokenizer.json").read_text())
    base, own = document["added_tokens"][:-9], document["added_tokens"][-9:]
    (tmp_path / "tokenizer.json").write_text(json.dumps(document | {"added_tokens": base}))
    ids = {token["content"]: token["id"] for token in own}
    (tmp_path / "added_tokens.json").write_text(json.dumps(ids))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False}))
    tokenizer = Tokenizer.from_checkpoint(tmp_path)
    assert tokenizer.special_id("<IMG_CONTEXT>") == 151667
    assert tokenizer.is_special(151667)


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """InternLM2's vocabulary as the SentencePiece model that the checkpoints carry."""
    folder = tmp_path_factory.mktemp("internlm2")
    document = json.loads((FOLDER / "internlm2_5" / "tokenizer.json").read_text())
    (folder / "tokenizer.model").write_bytes(_sentencepiece_model(document))
    _copy_config("internlm2_5", folder)
    return folder


@pytest.fixture(scope="module")
def from_model(sentencepiece_folder: Path) -> Tokenizer:
    """The tokenizer made of it."""
    return Tokenizer.from_checkpoint(sentencepiece_folder)


def test_sentencepiece_model_equals_tokenizer_json(from_model: Tokenizer) -> None:
    whole = real_tokenizer("internlm2_5")
    assert [from_model.encode(text) for text in TEXTS] == [whole.encode(text) for text in TEXTS]
    assert from_model.bos_id == whole.bos_id == 1
    assert from_model.drops_first_space


def test_sentencepiece_model_equals_sentencepiece_itself(
    sentencepiece_folder: Path, from_model: Tokenizer
) -> None:
    reference = SentencePieceProcessor(model_file=str(sentencepiece_folder / "tokenizer.model"))
    for text in TEXTS:
        assert from_model.encode(text) == reference.encode(text)


def test_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"expected tokenizer\.json, or vocab\.json"):
        Tokenizer.from_checkpoint(tmp_path)


def test_missing_special_token_is_named(tmp_path: Path) -> None:
    document = json.loads((FOLDER / "qwen2_5" / "tokenizer.json").read_text())
    # Its bytes alone: the other tokens would take seconds and change nothing.
    vocabulary = document["model"]["vocab"].items()
    document["model"]["vocab"] = {token: number for token, number in vocabulary if number < 256}
    document["model"]["merges"] = []
    document["added_tokens"] = document["added_tokens"][:-9]
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(TokenizerError, match="no token <img>"):
        Tokenizer.from_checkpoint(tmp_path)


def test_id_outside_the_vocabulary_has_no_bytes() -> None:
    assert real_tokenizer("qwen2_5").token_bytes(10**6) == b""


def _copy_config(family: str, folder: Path) -> None:
    source = FOLDER / family / "tokenizer_config.json"
    (folder / "tokenizer_config.json").write_text(source.read_text())


def _sentencepiece_model(document: dict[str, Any]) -> bytes:
    """Writes sentencepiece's ModelProto by hand: its own generated code wants protobuf 7.

    Field numbers from sentencepiece_model.proto: pieces=1 (piece=1, score=2, type=3),
    trainer_spec=2 (model_type=3: BPE is 2, byte_fallback=35), normalizer_spec=3 (name=1,
    add_dummy_prefix=3, remove_extra_whitespaces=4).
    """
    pieces = sorted(document["model"]["vocab"].items(), key=lambda item: item[1])
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3}
    body = b"".join(
        _field(
            1,
            _field(1, piece.encode())
            + b"\x15"
            + struct.pack("<f", -float(rank))
            + b"\x18"
            + bytes([kinds.get(piece, 6 if piece.startswith("<0x") else 1)]),
        )
        for piece, rank in pieces
    )
    trainer = b"\x18\x02" + b"\x98\x02\x01"
    normalizer = _field(1, b"identity") + b"\x18\x00" + b"\x20\x00"
    return body + _field(2, trainer) + _field(3, normalizer)


def _field(number: int, data: bytes) -> bytes:
    length, size = b"", len(data)
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data
