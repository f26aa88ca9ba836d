"""What a block of the KV cache holds, as a digest, so that equal prefixes are found again."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from itertools import accumulate

from llm_service.engines.base import ImageRows, Prompt

DIGEST_BYTE_COUNT = 32


class PrefixDigests:
    """The digests of one prompt's blocks: each covers its tokens, images and all that precedes.

    A row of the prompt table counts by its image's id, not by its values. Where rows belong to no
    image, the chain of digests ends before them.
    """

    def __init__(self, prompt: Prompt, vocabulary_size: int) -> None:
        self._images: tuple[ImageRows, ...] = prompt.images
        self._row_ends = list(accumulate(image.row_count for image in prompt.images))
        self._vocabulary_size = vocabulary_size
        self._latest: bytes | None = _digest(b"", prompt.cache_salt.encode())

    def next(self, token_ids: list[int]) -> bytes | None:
        """Returns the digest of the next block, or None if it cannot be named, nor any after it."""
        rows = [i - self._vocabulary_size for i in token_ids if i >= self._vocabulary_size]
        names = self._names(rows[0], rows[-1]) if rows else []
        if self._latest is not None and names is not None:
            self._latest = _digest(self._latest, array("q", token_ids).tobytes(), *names)
        else:
            self._latest = None
        return self._latest

    def _names(self, first_row: int, last_row: int) -> list[bytes] | None:
        """Returns two digests for each image that the rows are of; None where one has no image."""
        first, last = (
            bisect_right(self._row_ends, first_row),
            bisect_right(self._row_ends, last_row),
        )
        if last >= len(self._images):
            return None
        ids = [image.embedding_id for image in self._images[first : last + 1]]
        return [part for named in ids for part in (named.content_sha256, named.recipe_sha256)]


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTE_COUNT)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()
