"""The memory that a language model takes: its weights, and its KV cache."""

from __future__ import annotations

from llm_service.checkpoint import LLMConfig


def weight_byte_count(
    config: LLMConfig,
    itemsize: int,
    embedding_itemsize: int | None = None,
    head_itemsize: int | None = None,
) -> int:
    """Returns what the weights take in elements of so many bytes, an untied head among them.

    The embedding's and the head's have the size of the others unless another is given.

    The vectors, of norms and biases, are left out: they are less than a thousandth.
    """
    hidden, head_rows = config.hidden_size, config.head_count * config.head_dim
    attention = 2 * hidden * (head_rows + config.kv_head_count * config.head_dim)
    feed_forward = 3 * hidden * config.intermediate_size
    end = config.vocabulary_size * hidden
    layers = config.layer_count * (attention + feed_forward)
    end_itemsizes = (embedding_itemsize or itemsize) + (head_itemsize or itemsize)
    return itemsize * layers + end_itemsizes * end


def kv_byte_count(config: LLMConfig, token_count: int, itemsize: int) -> int:
    """Returns what the KV cache of so many tokens takes on one GPU, or on the CPU."""
    return token_count * config.kv_values_per_token() * itemsize
