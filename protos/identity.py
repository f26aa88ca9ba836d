"""What names an image embedding: digests of the file and of all else that decides its values."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass


@dataclass(frozen=True)
class EmbeddingId:
    """Names an embedding by all that decides its values; two SHA-256, 32 bytes each.

    Attributes:
        content_sha256: of the encoded image file (see content_digest).
        recipe_sha256: of everything else (see recipe_digest).
    """

    content_sha256: bytes
    recipe_sha256: bytes


def content_digest(image: bytes) -> bytes:
    """Returns the SHA-256 of an encoded image file, 32 bytes."""
    return hashlib.sha256(image).digest()


def recipe_digest(service_recipe: bytes, max_tile_count: int) -> bytes:
    """Returns EmbeddingId.recipe_sha256, 32 bytes.

    Args:
        service_recipe: the vision service's recipe_sha256 (its GetModelInfo).
        max_tile_count: the effective tile cap, i.e. the request's or else the service's default.
    """
    return hashlib.sha256(service_recipe + struct.pack(">I", max_tile_count)).digest()
