"""The signature of an embedding's rows, and the key's file."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from structlog.testing import capture_logs

from protos.identity import EmbeddingId
from protos.process.embedding_key import read_embedding_key
from protos.process.settings import EngineSettings, read_settings
from protos.signature import EmbeddingClaim, EmbeddingKey, EmbeddingKeyError

CLAIM = EmbeddingClaim(EmbeddingId(b"c" * 32, b"r" * 32), "bfloat16", (256, 8), b"d" * 32)
KEY = EmbeddingKey(b"k" * 32)


class Settings(EngineSettings):
    """A service with one engine."""

    engine: Literal["torch"] = "torch"


def test_a_claim_is_these_bytes() -> None:
    """Both services, and whoever writes one in another language, must agree on them."""
    expected = (
        b"internvl.v1.embedding"
        + b"c" * 32
        + b"r" * 32
        + b"bfloat16\0\0\0\0\0\0\0\0"
        + b"\0\0\0\x02"
        + b"\0\0\0\0\0\0\x01\0"
        + b"\0\0\0\0\0\0\0\x08"
        + b"d" * 32
    )
    assert bytes(CLAIM) == expected
    assert KEY.sign(CLAIM) == hmac.new(b"k" * 32, expected, hashlib.sha256).digest()


@pytest.mark.parametrize(
    "other",
    [
        replace(CLAIM, id=EmbeddingId(b"r" * 32, b"c" * 32)),
        replace(CLAIM, dtype="float16"),
        replace(CLAIM, shape=(8, 256)),
        replace(CLAIM, shape=(2048,)),
        replace(CLAIM, rows_sha256=b"e" * 32),
    ],
)
def test_whatever_differs_is_not_signed(other: EmbeddingClaim) -> None:
    assert KEY.has_signed(CLAIM, KEY.sign(CLAIM))
    assert not KEY.has_signed(other, KEY.sign(CLAIM))
    assert not EmbeddingKey(b"l" * 32).has_signed(CLAIM, KEY.sign(CLAIM))
    assert not KEY.has_signed(CLAIM, b"")


def test_a_key_does_not_show_itself() -> None:
    assert "kkk" not in repr(KEY) + str(vars(type(KEY)))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "has 0 bytes; it must have at least 32"),
        (b"k" * 31, "has 31 bytes; it must have at least 32"),
        (b"k" * 4097, "has more than 4096 bytes, which is the limit"),
    ],
    ids=["missing", "empty", "short", "long"],
)
def test_a_file_that_is_no_key_is_one_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    data: bytes | None,
    sentence: str,
) -> None:
    path = tmp_path / "key"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(EmbeddingKeyError, match=sentence):
        EmbeddingKey.read(path)
    monkeypatch.setattr("sys.argv", ["program", "--embedding-key-file", str(path)])
    with pytest.raises(SystemExit) as caught:
        read_settings(Settings)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"--embedding-key-file: the key {path} ")
    assert sentence in line


@pytest.mark.parametrize(("mode", "warned"), [(0o400, False), (0o640, False), (0o644, True)])
def test_a_key_that_everybody_can_read_is_warned_of(
    tmp_path: Path, mode: int, warned: bool
) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"k" * 32)
    path.chmod(mode)
    with capture_logs() as events:
        key = read_embedding_key(Settings(embedding_key_file=path))
    assert key is not None
    assert key.sign(CLAIM) == KEY.sign(CLAIM)
    assert [event["event"] for event in events] == ["embedding_key_exposed"] * warned


def test_without_an_option_there_is_no_key() -> None:
    assert read_embedding_key(Settings()) is None
