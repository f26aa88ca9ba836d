"""Signatures of image embeddings: proof that the rows were made by a service that has the key."""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass
from pathlib import Path

from protos.identity import EmbeddingId

MIN_KEY_BYTE_COUNT = 32
MAX_KEY_BYTE_COUNT = 4096
# A signature of something else, made with the same key, is none of an embedding.
PURPOSE = b"internvl.v1.embedding"


class EmbeddingKeyError(ValueError):
    """The key's file cannot be used; the message is one sentence."""


@dataclass(frozen=True)
class EmbeddingClaim:
    """What a signature vouches for: that the embedding of this name has these rows.

    Attributes:
        id: the embedding's name.
        dtype: element type of the rows: "bfloat16", "float16" or "float32".
        shape: of the rows.
        rows_sha256: of the rows' bytes.
    """

    id: EmbeddingId
    dtype: str
    shape: tuple[int, ...]
    rows_sha256: bytes

    def __bytes__(self) -> bytes:
        """Returns the bytes that are signed; whatever differs, they do, too.

        PURPOSE, both digests of the name, the element type (ASCII, filled up with zeros to 16
        bytes), the number of dimensions (4 bytes), each dimension (8 bytes), the rows' digest; all
        numbers big-endian.
        """
        return struct.pack(
            f">{len(PURPOSE)}s32s32s16sI{len(self.shape)}Q32s",
            PURPOSE,
            self.id.content_sha256,
            self.id.recipe_sha256,
            self.dtype.encode(),
            len(self.shape),
            *self.shape,
            self.rows_sha256,
        )


class EmbeddingKey:
    """The secret that vision services sign embeddings with, and LLM services check them with."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    @classmethod
    def read(cls, path: Path) -> EmbeddingKey:
        """Reads the key: all bytes of a file, 32 to 4096 of them.

        Raises:
            EmbeddingKeyError: the file cannot be read, or has fewer or more.
        """
        try:
            with path.open("rb") as file:
                secret = file.read(MAX_KEY_BYTE_COUNT + 1)
        except OSError as error:
            raise EmbeddingKeyError(f"the key {path} cannot be read: {error.strerror}") from error
        if len(secret) > MAX_KEY_BYTE_COUNT:
            raise EmbeddingKeyError(
                f"the key {path} has more than {MAX_KEY_BYTE_COUNT} bytes, which is the limit"
            )
        if len(secret) < MIN_KEY_BYTE_COUNT:
            raise EmbeddingKeyError(
                f"the key {path} has {len(secret)} bytes; it must have at least"
                f" {MIN_KEY_BYTE_COUNT}, and they should be random"
            )
        return cls(secret)

    def sign(self, claim: EmbeddingClaim) -> bytes:
        """Returns the HMAC-SHA256 of a claim, 32 bytes."""
        return hmac.digest(self._secret, bytes(claim), "sha256")

    def has_signed(self, claim: EmbeddingClaim, signature: bytes) -> bool:
        """Says whether a claim was signed with this key."""
        return hmac.compare_digest(self.sign(claim), signature)
