"""The checkpoint's tokenizer: ordinary text to ids, special tokens by name, ids to bytes.

Control tokens enter a prompt only by their ids (`special_id`): text that a user typed is always
encoded as ordinary text, so `<|im_end|>` in a question is ten characters, not the end of a turn.

The checkpoint folder has one of
- `tokenizer.json`;
- `vocab.json` and `merges.txt` (the Qwen2 sizes);
- `tokenizer.model` (SentencePiece, the InternLM2 sizes);
and the special tokens in any of `tokenizer.json`, `added_tokens.json`, `tokenizer_config.json`. No
Python code of the checkpoint is ever run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from sentencepiece import SentencePieceProcessor

from llm_service.json_object import read_json_object

IMAGE_START = "<img>"
IMAGE_END = "</img>"
IMAGE_CONTEXT = "<IMG_CONTEXT>"
MESSAGE_START = "<|im_start|>"
MESSAGE_END = "<|im_end|>"

# The pre-tokenizer pattern of Qwen2 and Qwen2.5, which vocab.json and merges.txt do not carry
# (transformers, models/qwen2/tokenization_qwen2.py, PRETOKENIZE_REGEX).
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPACE_MARK = "▁"
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class TokenizerError(Exception):
    """The checkpoint folder holds no tokenizer that we can read."""


@dataclass(frozen=True)
class AddedToken:
    """A token beside the trained vocabulary; `special` ones are left out of answers by default."""

    id: int
    special: bool


class Tokenizer:
    """Encodes ordinary text and decodes ids to bytes.

    Attributes:
        bos_id: the token that begins every prompt; None where the model has none (Qwen2).
        drops_first_space: whether a decoded text loses one leading space (SentencePiece).
        highest_id: the largest id of a token.
        fingerprint: SHA-256 of vocabulary, merges and added tokens.
    """

    def __init__(
        self, definition: dict[str, Any], added: Mapping[str, AddedToken], bos_token: str | None
    ) -> None:
        """Builds it from a `tokenizer.json` document and the added tokens by content."""
        self._added = dict(added)
        self._added_contents = {token.id: content for content, token in added.items()}
        self._special_ids = {token.id for token in added.values() if token.special}
        ordinary = json.dumps(_without_added_tokens(definition, set(self._added_contents)))
        self._ordinary = tokenizers.Tokenizer.from_str(ordinary)
        self._byte_level = definition["decoder"]["type"] == "ByteLevel"
        self.drops_first_space = not self._byte_level
        self.bos_id = self.special_id(bos_token) if bos_token else None
        self.highest_id = max([*self._added_contents, *definition["model"]["vocab"].values()])
        facts = json.dumps([ordinary, sorted((c, t.id) for c, t in added.items()), bos_token])
        self.fingerprint = hashlib.sha256(facts.encode()).digest()

    @classmethod
    def from_checkpoint(cls, folder: Path) -> Tokenizer:
        """Reads the tokenizer of a checkpoint folder.

        Raises:
            TokenizerError: no known file is there, or a token that InternVL needs is missing.
        """
        config = _read_json(folder / "tokenizer_config.json")
        added = _added_tokens(folder, config)
        if (folder / "tokenizer.json").is_file():
            definition = _read_json(folder / "tokenizer.json")
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            definition = _byte_level_definition(folder)
        elif (folder / "tokenizer.model").is_file():
            definition = _sentencepiece_definition(folder / "tokenizer.model")
        else:
            raise TokenizerError(
                f"{folder} has no tokenizer: expected tokenizer.json, or vocab.json and merges.txt,"
                " or tokenizer.model"
            )
        try:
            byte_level = definition["decoder"]["type"] == "ByteLevel"
            bos_token = "<s>" if config.get("add_bos_token", not byte_level) else None
            tokenizer = cls(definition, added, bos_token)
        except (KeyError, TypeError, AttributeError) as error:
            raise TokenizerError(f"{folder}: a tokenizer file is damaged: {error!r}") from error
        for content in (MESSAGE_START, MESSAGE_END, IMAGE_START, IMAGE_END, IMAGE_CONTEXT):
            tokenizer.special_id(content)
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """Returns the ids of ordinary text: never a special token, no beginning token."""
        # encode would do, but of the two only encode_batch lets go of the interpreter's lock: a
        # long text on another thread must not stop the event loop.
        (encoding,) = self._ordinary.encode_batch([text], add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids

    def special_id(self, content: str) -> int:
        """Returns the id of an added token, e.g. "<|im_end|>".

        Raises:
            TokenizerError: the tokenizer has no such token.
        """
        if content not in self._added:
            raise TokenizerError(f"the tokenizer has no token {content}")
        return self._added[content].id

    def has_token(self, content: str) -> bool:
        """Returns whether there is an added token, e.g. "<tool_call>"."""
        return content in self._added

    def is_special(self, token_id: int) -> bool:
        """Returns whether an id is a special token, which answers leave out by default."""
        return token_id in self._special_ids

    def token_bytes(self, token_id: int) -> bytes:
        """Returns the bytes that a token stands for; empty for an id outside the vocabulary."""
        if token_id in self._added_contents:
            return self._added_contents[token_id].encode()
        piece: str | None = self._ordinary.id_to_token(token_id)
        if piece is None:
            return b""
        if self._byte_level:
            return bytes(BYTE_OF_CHARACTER[character] for character in piece)
        if match := BYTE_PIECE.fullmatch(piece):
            return bytes([int(match[1], 16)])
        return piece.replace(SPACE_MARK, " ").encode()


def _byte_alphabet() -> dict[str, int]:
    # GPT-2's byte alphabet: printable Latin-1 characters stand for themselves, the other bytes for
    # characters from U+0100 on (openai/gpt-2, encoder.py, bytes_to_unicode).
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    shifted = {chr(0x100 + index): byte for index, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | shifted


BYTE_OF_CHARACTER = _byte_alphabet()


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    return read_json_object(path, "the checkpoint", TokenizerError)


def _added_tokens(folder: Path, config: dict[str, Any]) -> dict[str, AddedToken]:
    # Later sources win: a tokenizer.json copied from the base model lacks InternVL's nine tokens,
    # added_tokens.json has them but says nothing of `special`.
    added = {
        token["content"]: AddedToken(token["id"], token["special"])
        for token in _read_json(folder / "tokenizer.json").get("added_tokens", [])
    }
    for content, token_id in _read_json(folder / "added_tokens.json").items():
        added.setdefault(content, AddedToken(token_id, special=True))
    for token_id, token in config.get("added_tokens_decoder", {}).items():
        added[token["content"]] = AddedToken(int(token_id), token.get("special", False))
    return added


def _without_added_tokens(definition: dict[str, Any], added_ids: set[int]) -> dict[str, Any]:
    """Returns a tokenizer.json document that cannot produce an added token from text.

    Dropping the added-token list is not enough: InternLM2's merges build "<s>" from "<s" and ">".
    """
    model = definition["model"]
    vocab = model["vocab"]
    merges = [pair if isinstance(pair, list) else pair.split(" ", 1) for pair in model["merges"]]
    kept = [pair for pair in merges if vocab["".join(pair)] not in added_ids]
    return definition | {
        "model": model | {"merges": kept},
        "added_tokens": [],
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }


def _byte_level_definition(folder: Path) -> dict[str, Any]:
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [line.split(" ", 1) for line in lines if line and not line.startswith("#version")]
    byte_level = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {
        "type": "Split",
        "pattern": {"Regex": QWEN2_PATTERN},
        "behavior": "Isolated",
        "invert": False,
    }
    return {
        "version": "1.0",
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split, {"type": "ByteLevel", **byte_level}],
        },
        "decoder": {"type": "ByteLevel", **byte_level},
        "model": {"type": "BPE", "vocab": _read_json(folder / "vocab.json"), "merges": merges},
    }


def _sentencepiece_definition(path: Path) -> dict[str, Any]:
    """Converts a SentencePiece BPE model, as InternLM2's: no dummy prefix, byte fallback."""
    model = SentencePieceProcessor(model_file=str(path))
    pieces = [model.id_to_piece(index) for index in range(model.get_piece_size())]
    mergeable = {
        piece: index
        for index, piece in enumerate(pieces)
        if not (model.is_control(index) or model.is_unknown(index) or model.is_byte(index))
    }
    # A BPE model's scores fall with the order in which its merges were learned.
    by_rank = sorted(mergeable, key=lambda piece: model.get_score(mergeable[piece]), reverse=True)
    merges = [pair for piece in by_rank for pair in _splits(piece, mergeable)]
    return {
        "version": "1.0",
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK},
        "pre_tokenizer": None,
        "decoder": {"type": "ByteFallback"},
        "model": {
            "type": "BPE",
            "vocab": {piece: index for index, piece in enumerate(pieces)},
            "merges": merges,
            "unk_token": pieces[model.unk_id()],
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }


def _splits(piece: str, vocab: Mapping[str, int]) -> Iterator[list[str]]:
    pairs = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
    known = [(left, right) for left, right in pairs if left in vocab and right in vocab]
    for left, right in sorted(known, reverse=True):
        yield [left, right]
