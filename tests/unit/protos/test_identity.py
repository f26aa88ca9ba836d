from __future__ import annotations

import hashlib

from protos.identity import content_digest, recipe_digest


def test_content_digest_is_the_files_sha256() -> None:
    assert content_digest(b"file") == hashlib.sha256(b"file").digest()


def test_recipe_digest_is_sha256_over_recipe_and_big_endian_cap() -> None:
    expected = hashlib.sha256(b"r" * 32 + b"\x00\x00\x00\x0c").digest()
    assert recipe_digest(b"r" * 32, 12) == expected
