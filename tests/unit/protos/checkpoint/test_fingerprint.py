"""Fingerprints of checkpoints whose files the tests write byte by byte."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from protos.checkpoint.fingerprint import SAMPLE_BYTE_COUNT, CheckpointFingerprint
from protos.checkpoint.section import CheckpointError

Tensors = dict[str, bytes]

CONFIG = {
    "_name_or_path": "OpenGVLab/InternVL2_5-1B",
    "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
    "select_layer": -1,
    "template": "internvl2_5",
    "llm_config": {"rope_theta": 1000000.0, "torch_dtype": "bfloat16", "architectures": ["A"]},
}
LONG = bytes(range(256)) * 256  # 64 KiB, of which three pieces are read
TENSORS: Tensors = {
    "vision_model.a": b"tower",
    "mlp1.0.weight": b"projector",
    "mlp1.1.weight": LONG,
    "language_model.a": LONG[::-1],
    "language_model.b": b"small",
}
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 10\n"


def safetensors(tensors: Mapping[str, bytes], dtype: str = "U8") -> bytes:
    header, offset = {}, 0
    for name, data in tensors.items():
        offsets = [offset, offset + len(data)]
        header[name] = {"dtype": dtype, "shape": [len(data)], "data_offsets": offsets}
        offset += len(data)
    document = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    return struct.pack("<Q", len(document)) + document + b"".join(tensors.values())


def write(
    folder: Path, *shards: Mapping[str, bytes], config: dict[str, Any] | None = None
) -> CheckpointFingerprint:
    """Writes a checkpoint of one file or of several, and returns its fingerprint."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    if len(shards) == 1:
        (folder / "model.safetensors").write_bytes(safetensors(shards[0]))
    else:
        weight_map = {name: f"{number}.st" for number, one in enumerate(shards) for name in one}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        for number, shard in enumerate(shards):
            (folder / f"{number}.st").write_bytes(safetensors(shard))
    return CheckpointFingerprint.from_checkpoint(folder)


@pytest.fixture
def base(tmp_path: Path) -> CheckpointFingerprint:
    return write(tmp_path / "base", TENSORS)


def without(prefix: str) -> Tensors:
    return {name: data for name, data in TENSORS.items() if not name.startswith(prefix)}


def test_every_part_is_a_sha256(base: CheckpointFingerprint) -> None:
    assert [len(digest) for digest in vars(base).values()] == [32, 32, 32]
    assert len(set(vars(base).values())) == 3


def test_a_copy_elsewhere_is_the_same(tmp_path: Path, base: CheckpointFingerprint) -> None:
    assert write(tmp_path / "copy", TENSORS) == base


@pytest.mark.parametrize("shard_count", [2, 3, 5])
def test_how_tensors_are_shared_out_does_not_matter(
    tmp_path: Path, base: CheckpointFingerprint, shard_count: int
) -> None:
    """Nor their order: each file has its own."""
    items = list(reversed(TENSORS.items()))
    shards = [dict(items[number::shard_count]) for number in range(shard_count)]
    assert write(tmp_path / "shards", *shards) == base


@pytest.mark.parametrize(
    "changes",
    [
        {"_name_or_path": "/home/me/copy"},
        {"_commit_hash": "abc", "transformers_version": "5.0.0"},
        {"auto_map": None, "dtype": "bfloat16", "torch_dtype": "float32"},
        {"use_flash_attn": False, "max_dynamic_patch": 6},
        {"system_message": None},
        {"llm_config": {"rope_theta": 1000000, "architectures": ["A"], "_attn": "eager"}},
    ],
)
def test_what_copies_may_differ_in_is_left_out(
    tmp_path: Path, base: CheckpointFingerprint, changes: dict[str, Any]
) -> None:
    config = dict(reversed((CONFIG | changes).items()))
    assert write(tmp_path / "copy", TENSORS, config=config) == base


@pytest.mark.parametrize(
    "changes",
    [
        {"template": "Hermes-2"},
        {"select_layer": -2},
        {"new": 1},
        {"llm_config": {"rope_theta": 1000000.5, "architectures": ["A"]}},
        {"llm_config": {"rope_theta": 1000000.0, "architectures": ["A", "B"]}},
    ],
)
def test_what_a_model_is_made_of_counts(
    tmp_path: Path, base: CheckpointFingerprint, changes: dict[str, Any]
) -> None:
    other = write(tmp_path / "other", TENSORS, config=CONFIG | changes)
    assert other.differences(base) == {"config_sha256": "configuration"}


def changed(data: bytes, offset: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]


@pytest.mark.parametrize(
    ("name", "part"),
    [("mlp1.1.weight", "projector"), ("language_model.a", "language model")],
)
@pytest.mark.parametrize(
    "offset",
    [
        *(0, SAMPLE_BYTE_COUNT - 1),
        *(len(LONG) // 2 - SAMPLE_BYTE_COUNT // 2, len(LONG) // 2),
        *(len(LONG) - SAMPLE_BYTE_COUNT, len(LONG) - 1),
    ],
)
def test_a_value_at_either_end_and_in_the_middle_counts(
    tmp_path: Path, base: CheckpointFingerprint, name: str, part: str, offset: int
) -> None:
    """As a fine-tune has them: config.json and index are those of its base."""
    tuned = write(tmp_path / "tuned", TENSORS | {name: changed(TENSORS[name], offset)})
    assert list(tuned.differences(base).values()) == [part]


@pytest.mark.parametrize("byte_count", [1, 3 * SAMPLE_BYTE_COUNT])
def test_a_small_tensor_is_read_whole(tmp_path: Path, byte_count: int) -> None:
    data = bytes(byte_count)
    found = {
        write(tmp_path / "small", {"language_model.a": value}).language_model_sha256
        for value in (data, *(changed(data, offset) for offset in {0, byte_count // 3}))
    }
    assert len(found) == 1 + len({0, byte_count // 3})


def test_names_types_and_shapes_count(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    found = set()
    for name, dtype, shape in (
        ("language_model.a", "BF16", [2, 3]),
        ("language_model.b", "BF16", [2, 3]),
        ("language_model.a", "F16", [2, 3]),
        ("language_model.a", "BF16", [3, 2]),
    ):
        header = {name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 12]}}
        document = json.dumps(header).encode()
        data = struct.pack("<Q", len(document)) + document + bytes(12)
        (tmp_path / "model.safetensors").write_bytes(data)
        found.add(CheckpointFingerprint.from_checkpoint(tmp_path).language_model_sha256)
    assert len(found) == 4


def test_the_tower_has_no_part(tmp_path: Path, base: CheckpointFingerprint) -> None:
    """The vision service alone runs it, whatever the language model is."""
    assert write(tmp_path / "other", TENSORS | {"vision_model.a": b"other"}) == base


def test_buffers_do_not_count(tmp_path: Path, base: CheckpointFingerprint) -> None:
    buffers = {"language_model.model.layers.0.self_attn.rotary_emb.inv_freq": b"computed"}
    assert write(tmp_path / "old", TENSORS | buffers) == base


@pytest.mark.parametrize(
    ("prefix", "empty"),
    [("mlp1.", "projector_sha256"), ("language_model.", "language_model_sha256")],
)
def test_a_part_that_is_not_there_is_empty(
    tmp_path: Path, base: CheckpointFingerprint, prefix: str, empty: str
) -> None:
    lacking = write(tmp_path / "lacking", without(prefix))
    assert vars(lacking) == vars(base) | {empty: b""}
    assert lacking.differences(base) == base.differences(lacking) == {}


def test_a_pipe_is_not_waited_for(tmp_path: Path, base: CheckpointFingerprint) -> None:
    folder = tmp_path / "pipe"
    write(folder, without("language_model."), {"language_model.a": b""})
    (folder / "1.st").unlink()
    os.mkfifo(folder / "1.st")
    found = CheckpointFingerprint.from_checkpoint(folder)
    assert vars(found) == vars(base) | {"language_model_sha256": b""}


def test_a_folder_without_weights_has_its_config(
    tmp_path: Path, base: CheckpointFingerprint
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    found = CheckpointFingerprint.from_checkpoint(tmp_path)
    assert found == CheckpointFingerprint(config_sha256=base.config_sha256)


def with_header(document: Any) -> bytes:
    text = json.dumps(document).encode()
    return struct.pack("<Q", len(text)) + text


def with_offsets(*offsets: Any) -> bytes:
    tensor = {"dtype": "U8", "shape": [1], "data_offsets": offsets}
    return with_header({"language_model.a": tensor, "language_model.b": tensor})


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        LFS_POINTER,
        struct.pack("<Q", 4) + b"\xff[}{",
        safetensors(without("mlp1."))[:-1],
        safetensors({"language_model.a": LONG}),
        with_header([]),
        with_header({"language_model.a": {}}),
        *(with_offsets(*offsets) for offsets in ((1,), (5, 1), ("0", "1"), (0, 2**70))),
    ],
)
def test_a_file_that_is_missing_or_damaged_leaves_its_part_empty(
    tmp_path: Path, base: CheckpointFingerprint, content: bytes | None
) -> None:
    """As on a machine that has the other service's files only, e.g. of an unfinished download."""
    folder = tmp_path / "half"
    write(folder, without("language_model."), without("mlp1."))
    (folder / "1.st").unlink()
    if content is not None:
        (folder / "1.st").write_bytes(content)
    found = CheckpointFingerprint.from_checkpoint(folder)
    assert vars(found) == vars(base) | {"language_model_sha256": b""}


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 800 + "]" * 800])
def test_a_config_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        CheckpointFingerprint.from_checkpoint(tmp_path)


def test_a_config_nested_without_end_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a":' * 900 + "1" + "}" * 900)
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        CheckpointFingerprint.from_checkpoint(tmp_path)
