"""Image embeddings' ids for tests that name images by a word."""

from __future__ import annotations

from protos.identity import EmbeddingId, content_digest


def embedding_id(name: str) -> EmbeddingId:
    """Returns the id of the image of this name; all are embedded alike."""
    return EmbeddingId(content_digest(name.encode()), recipe_sha256=bytes(32))
