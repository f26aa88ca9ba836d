"""Vocabularies in other forms, Qwen2's files and SentencePiece's, as a tokenizer.json document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from protos.checkpoint.contents import require_content
from protos.checkpoint.section import CheckpointError, Section, quoted

# The pre-tokenizer pattern of Qwen2 to Qwen3, which vocab.json and merges.txt do not carry
# (transformers, models/qwen2/tokenization_qwen2.py, PRETOKENIZE_REGEX).
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPACE_MARK = "▁"
# What SentencePiece must leave as it is but for the mark: blanks at the start, the end and in a
# row, and characters that Unicode's compatibility forms would replace.
PROBE = " a  ，①ﬁ "


def byte_level_definition(folder: Path) -> dict[str, Any]:
    """Returns the tokenizer of vocab.json and merges.txt, Qwen2's."""
    lines = read_text(folder / "merges.txt").splitlines()
    merges = [line.split(" ", 1) for line in lines if line and not line.startswith("#version")]
    if lone := [pair for pair in merges if len(pair) < 2]:
        raise CheckpointError(f"{folder / 'merges.txt'}: {quoted(lone[0][0])} is no merge of two")
    byte_level = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {
        "type": "Split",
        "pattern": {"Regex": QWEN2_PATTERN},
        "behavior": "Isolated",
        "invert": False,
    }
    vocab = Section.of_file(folder / "vocab.json").values
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split, {"type": "ByteLevel", **byte_level}],
        },
        "decoder": {"type": "ByteLevel", **byte_level},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def sentencepiece_definition(path: Path) -> dict[str, Any]:
    """Converts a SentencePiece BPE model, as InternLM2's: no dummy prefix, byte fallback.

    The pieces that a user of SentencePiece defined, which no merge makes, are added tokens here.
    """
    model = _sentencepiece_model(path)
    pieces = [model.id_to_piece(index) for index in range(model.get_piece_size())]
    mergeable = {
        piece: index
        for index, piece in enumerate(pieces)
        if not (model.is_control(index) or model.is_unknown(index) or model.is_byte(index))
    }
    scores = {piece: model.get_score(index) for piece, index in mergeable.items()}
    if not all(map(float.is_integer, scores.values())):
        raise CheckpointError(f"{path}: is a SentencePiece model of another kind than BPE")
    # A BPE model's scores fall with the order in which its merges were learned.
    by_rank = sorted(mergeable, key=lambda piece: scores[piece], reverse=True)
    splits = {piece: list(_splits(piece, mergeable)) for piece in by_rank}
    alone = (piece for piece in by_rank if len(piece) > 1 and not splits[piece])
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": mergeable[piece], "content": piece.replace(SPACE_MARK, " ")}
            for piece in alone
            if model.encode(piece) == [mergeable[piece]]
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK},
        "pre_tokenizer": None,
        "decoder": {"type": "ByteFallback"},
        "model": {
            "type": "BPE",
            "vocab": {piece: index for index, piece in enumerate(pieces)},
            "merges": [pair for piece in by_rank for pair in splits[piece]],
            "unk_token": pieces[model.unk_id()],
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }


def read_text(path: Path) -> str:
    """Returns a text file's content.

    Raises:
        CheckpointError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def _sentencepiece_model(path: Path) -> SentencePieceProcessor:
    require_content(path)
    try:
        model = SentencePieceProcessor(model_proto=path.read_bytes())
        if not model.get_piece_size():
            raise RuntimeError("it has no pieces")
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: is no SentencePiece model; it is damaged: copy it anew"
        ) from error
    normalised = model.normalize(PROBE)
    if normalised != PROBE.replace(" ", SPACE_MARK):
        raise CheckpointError(
            f"{path}: SentencePiece makes {normalised!r} of {PROBE!r}; only models that neither"
            " add_dummy_prefix nor normalise, as InternLM2's, are served"
        )
    return model


def _splits(piece: str, vocab: Mapping[str, int]) -> Iterator[list[str]]:
    pairs = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
    known = [(left, right) for left, right in pairs if left in vocab and right in vocab]
    for left, right in sorted(known, reverse=True):
        yield [left, right]
