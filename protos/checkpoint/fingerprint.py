"""A checkpoint's fingerprint: whether two folders, each on its own machine, hold one model."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protos.checkpoint.contents import require_content
from protos.checkpoint.location import CONFIG_FILE
from protos.checkpoint.section import CheckpointError, Section
from protos.checkpoint.weight_index import (
    BUFFER_SUFFIXES,
    INDEX_FILE,
    SINGLE_FILE,
    indexed_names,
)

PROJECTOR, LANGUAGE_MODEL = "mlp1.", "language_model."
PART_NAMES = {
    "config_sha256": "configuration",
    "projector_sha256": "projector",
    "language_model_sha256": "language model",
}
# What copies of one model may differ in: who saved it and with what, and how it is to be run.
# Names that begin with an underscore are such, too. Of the tensors their own types count.
NOISE = frozenset(
    {
        "attn_implementation",
        "auto_map",
        "dtype",
        "max_dynamic_patch",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "use_flash_attn",
    }
)
# Read at the beginning, the middle and the end of each tensor: a fine-tune changes a matrix in all
# of its rows, and a new vocabulary's tokens are the last ones.
SAMPLE_BYTE_COUNT = 4096
# As the format's own library has it. The first bytes of something else make a larger number.
MAX_HEADER_BYTE_COUNT = 100_000_000
CONCURRENT_FILE_COUNT = 16
# What reading a file fails with that is cut short, or is something else.
MALFORMED = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError,
    CheckpointError,
)  # fmt: skip


@dataclass(frozen=True)
class CheckpointFingerprint:
    """Digests of a checkpoint's parts; fields as in CheckpointFingerprint of checkpoint.proto.

    Attributes:
        config_sha256: of config.json.
        projector_sha256: of the projector's tensors; empty when the folder lacks one of them.
        language_model_sha256: likewise of the language model's.
    """

    config_sha256: bytes = b""
    projector_sha256: bytes = b""
    language_model_sha256: bytes = b""

    @classmethod
    def from_checkpoint(cls, checkpoint: Path) -> CheckpointFingerprint:
        """Reads config.json, and some bytes of each tensor of both parts.

        A part of which a file is missing, damaged or no safetensors file is left empty: its service
        refuses the file, and the other one does not need it.

        Raises:
            CheckpointError: config.json or the index cannot be read.
        """
        indexed = _indexed_files(checkpoint)
        files = {checkpoint / file for file in indexed.values()} or {checkpoint / SINGLE_FILE}
        with ThreadPoolExecutor(CONCURRENT_FILE_COUNT) as pool:  # a cold disk answers several
            found = pool.map(_tensor_digests, files)
            digests = {name: digest for tensors in found for name, digest in tensors.items()}
        names = indexed or digests
        return cls(
            _config_digest(checkpoint / CONFIG_FILE),
            _part_digest(PROJECTOR, names, digests),
            _part_digest(LANGUAGE_MODEL, names, digests),
        )

    def differences(self, other: CheckpointFingerprint) -> dict[str, str]:
        """Returns the names of the parts that both have and that differ, by their fields."""
        own, others = vars(self), vars(other)
        return {
            field: name
            for field, name in PART_NAMES.items()
            if own[field] and others[field] and own[field] != others[field]
        }


def _config_digest(file: Path) -> bytes:
    section = Section.of_file(file)
    try:
        values = json.dumps(_without_noise(section.values), sort_keys=True)
    except RecursionError as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error
    return hashlib.sha256(values.encode()).digest()


def _without_noise(value: Any) -> Any:
    """Returns a JSON value in which null is a missing key, and 1.0 is 1."""
    if isinstance(value, Mapping):
        kept = {key: inner for key, inner in value.items() if inner is not None}
        return {key: _without_noise(kept[key]) for key in kept if not _is_noise(key)}
    if isinstance(value, list):
        return [_without_noise(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_noise(key: str) -> bool:
    return key.startswith("_") or key in NOISE


def _indexed_files(checkpoint: Path) -> dict[str, str]:
    """Returns the files of both parts' tensors by the tensors' names; none without an index."""
    index = checkpoint / INDEX_FILE
    if not index.is_file():
        return {}
    return {name: file for name, file in indexed_names(index).items() if _is_in_a_part(name)}


def _is_in_a_part(name: str) -> bool:
    return name.startswith((PROJECTOR, LANGUAGE_MODEL)) and not name.endswith(BUFFER_SUFFIXES)


def _part_digest(prefix: str, names: Iterable[str], digests: Mapping[str, bytes]) -> bytes:
    part = sorted(name for name in names if name.startswith(prefix))
    if not part or not digests.keys() >= set(part):
        return b""
    return hashlib.sha256(b"".join(digests[name] for name in part)).digest()


def _tensor_digests(file: Path) -> dict[str, bytes]:
    """Returns the digests of both parts' tensors in a file; none if it is no safetensors file."""
    try:
        require_content(file)
        with file.open("rb") as stored:
            return dict(_read_digests(stored.fileno()))
    except MALFORMED:
        return {}


def _read_digests(descriptor: int) -> Iterator[tuple[str, bytes]]:
    """Yields names and digests: a header's length, the header, and the bytes that it tells of."""
    (header_byte_count,) = struct.unpack("<Q", _read(descriptor, 8, 0))
    if header_byte_count > MAX_HEADER_BYTE_COUNT:
        raise ValueError("a header is never as long")
    start = 8 + header_byte_count
    for name, tensor in json.loads(_read(descriptor, header_byte_count, 8)).items():
        if _is_in_a_part(name):
            begin, end = tensor["data_offsets"]
            digest = hashlib.sha256(f"{name} {tensor['dtype']} {tensor['shape']}\n".encode())
            for offset, byte_count in _samples(end - begin):
                digest.update(_read(descriptor, byte_count, start + begin + offset))
            yield name, digest.digest()


def _samples(byte_count: int) -> list[tuple[int, int]]:
    """Returns offset and length of what is read of a tensor; a small one is read whole."""
    if byte_count <= 3 * SAMPLE_BYTE_COUNT:
        return [(0, byte_count)]
    last = byte_count - SAMPLE_BYTE_COUNT
    return [(offset, SAMPLE_BYTE_COUNT) for offset in (0, last // 2, last)]


def _read(descriptor: int, byte_count: int, offset: int) -> bytes:
    data = os.pread(descriptor, byte_count, offset)
    if len(data) != byte_count:
        raise ValueError("the file is cut short")
    return data
