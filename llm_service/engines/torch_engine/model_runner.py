"""One forward pass: scheduled sequences in, logits of those that sample out."""

from __future__ import annotations

import torch

from llm_service.engines.torch_engine.attention import BatchLayout, SequenceSpan
from llm_service.engines.torch_engine.models.decoder import Decoder
from llm_service.engines.torch_engine.sequence import Sequence


class ModelRunner:
    """The decoder and its KV cache [layers, 2, blocks, block_size, kv_heads, head_dim]."""

    def __init__(self, decoder: Decoder, block_count: int, block_size: int) -> None:
        config, weight = decoder.config, decoder.embedding.weight
        self._decoder = decoder
        self._device = weight.device
        self._kv_cache = torch.empty(
            (config.layer_count, 2, block_count, block_size, config.kv_head_count, config.head_dim),
            dtype=weight.dtype,
            device=weight.device,
        )
        self._block_size = block_size

    def run(self, sequences: list[Sequence]) -> torch.Tensor:
        """Computes the scheduled tokens of all sequences in one batch.

        Returns:
            [S, vocabulary_size], the logits after the last token of each sequence that
            `is_sampled`, in order, in the model's dtype.
        """
        with torch.inference_mode():
            layout = self._layout(sequences)
            hidden = self._decoder(self._embed(sequences), self._kv_cache, layout)
            logits: torch.Tensor = self._decoder.head(hidden[_sampled_rows(sequences)])
            return logits

    def _layout(self, sequences: list[Sequence]) -> BatchLayout:
        spans, positions, slots = [], [], []
        for sequence in sequences:
            end = sequence.computed_count + sequence.scheduled_count
            blocks = torch.tensor(sequence.block_table[: -(-end // self._block_size)])
            position = torch.arange(sequence.computed_count, end)
            block, offset = position // self._block_size, position % self._block_size
            positions.append(position)
            slots.append(blocks[block] * self._block_size + offset)
            spans.append(SequenceSpan(sequence.scheduled_count, end, blocks.to(self._device)))
        return BatchLayout(
            positions=torch.cat(positions).to(self._device),
            slots=torch.cat(slots).to(self._device),
            spans=spans,
        )

    def _embed(self, sequences: list[Sequence]) -> torch.Tensor:
        """Returns [T, hidden_size]: rows of the embedding, or of a sequence's prompt table."""
        return torch.cat([self._embed_one(sequence) for sequence in sequences])

    def _embed_one(self, sequence: Sequence) -> torch.Tensor:
        embedding = self._decoder.embedding
        last_token_id = embedding.num_embeddings - 1
        token_ids = torch.tensor(sequence.scheduled_token_ids)
        embedded: torch.Tensor = embedding(token_ids.clamp(max=last_token_id).to(self._device))
        is_virtual = token_ids > last_token_id
        if is_virtual.any():
            # The first time this moves the table; afterwards it is there already.
            sequence.prompt_table = sequence.prompt_table.to(embedded)
            rows = (token_ids[is_virtual] - last_token_id - 1).to(self._device)
            embedded[is_virtual.to(self._device)] = sequence.prompt_table[rows]
        return embedded


def _sampled_rows(sequences: list[Sequence]) -> list[int]:
    """Returns the batch's rows that hold the last token of a sequence."""
    rows, end = [], 0
    for sequence in sequences:
        end += sequence.scheduled_count
        if sequence.is_sampled:
            rows.append(end - 1)
    return rows
