"""Which beginnings of prompts a simulated KV cache still has."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator

from llm_service.engines.base import Prompt

BLOCK_TOKEN_COUNT = 64


class PrefixCache:
    """Digests of prompts' beginnings, block by block; those used longest ago go first.

    Prompts share a beginning only when all their images are the same.
    """

    def __init__(self, max_token_count: int) -> None:
        self._max_block_count = max_token_count // BLOCK_TOKEN_COUNT
        self._blocks: OrderedDict[bytes, None] = OrderedDict()

    def known_count(self, prompt: Prompt) -> int:
        """Returns how many of a prompt's first tokens are known; its last one never is."""
        count = 0
        for block in _blocks(prompt):
            if block not in self._blocks:
                break
            self._blocks.move_to_end(block)
            count += BLOCK_TOKEN_COUNT
        return min(count, len(prompt.token_ids) - 1)

    def add(self, prompt: Prompt) -> None:
        """Keeps what has been read."""
        if not self._max_block_count:
            return
        for block in _blocks(prompt):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._max_block_count:
            self._blocks.popitem(last=False)


def _blocks(prompt: Prompt) -> Iterator[bytes]:
    """Yields a digest of the prompt up to the end of each whole block."""
    digest = hashlib.sha256(prompt.cache_salt.encode())
    for image in prompt.images:
        digest.update(image.embedding_id.content_sha256)
    tokens = array("q", prompt.token_ids)
    for end in range(BLOCK_TOKEN_COUNT, len(tokens) + 1, BLOCK_TOKEN_COUNT):
        digest.update(tokens[end - BLOCK_TOKEN_COUNT : end].tobytes())
        yield digest.digest()
