"""The tokens as guides need them: their bytes, and sets of them as bits."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from llguidance import LLTokenizer, TokenizerWrapper

from llm_service.tokenizer import MESSAGE_END, Tokenizer


class Vocabulary:
    """The tokens as llguidance wants them.

    Special tokens, images' and those without a text have no bytes here, so that no language holds
    them unless it names them by their numbers.

    Attributes:
        tokenizer: llguidance's; its end token is the chat template's.
        tokens: the bytes of each.
        ordinary: [ceil(vocabulary_size / 32)] int32, the bits of the tokens that have bytes.
        special_ids: the special tokens.
        size: the model's vocabulary size, at least the tokenizer's.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.size = size
        self.special_id = tokenizer.special_id
        self.special_ids = tokenizer.special_ids
        self._encode = tokenizer.encode_plain
        self.tokens = [_text_bytes(tokenizer, token_id) for token_id in range(size)]
        self.ordinary = token_bits((i for i, token in enumerate(self.tokens) if token), size)
        self.eos_token_id = tokenizer.special_id(MESSAGE_END)
        self.bos_token_id = None
        self.tokens[self.eos_token_id] = MESSAGE_END.encode()
        self.special_token_ids = [self.eos_token_id]
        self.tokenizer = LLTokenizer(TokenizerWrapper(self))

    def __call__(self, text: bytes) -> list[int]:
        """Encodes a text, as TokenizerWrapper asks its tokenizers to."""
        return self._encode(text.decode())


def token_bits(token_ids: Iterable[int], vocabulary_size: int) -> torch.Tensor:
    """Returns [ceil(vocabulary_size / 32)] int32, in which bit i % 32 of number i // 32 is id i."""
    bits = bytearray(4 * -(-vocabulary_size // 32))
    for token_id in token_ids:
        bits[token_id // 8] |= 1 << token_id % 8
    return torch.frombuffer(bits, dtype=torch.int32)


def unpacked(bits: torch.Tensor, vocabulary_size: int) -> torch.Tensor:
    """Returns [..., vocabulary_size] bool of token_bits' [..., ceil(vocabulary_size / 32)]."""
    flags = bits[..., None] >> torch.arange(32, dtype=torch.int32, device=bits.device)
    return (flags & 1).bool().flatten(-2)[..., :vocabulary_size]


def _text_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    return b"" if tokenizer.is_special(token_id) else tokenizer.token_bytes(token_id)
