"""What the penalties of one sequence look at."""

from __future__ import annotations

import torch


class TokenHistory:
    """The tokens that a sequence has had, on the logits' device.

    Attributes:
        counts: [vocabulary_size] float32, occurrences in the output.
        seen: [vocabulary_size] bool, whether in the prompt's text or the output.
    """

    def __init__(
        self, prompt: list[int], output: list[int], vocabulary_size: int, device: torch.device
    ) -> None:
        """Counts token ids; those of virtual tokens, which have no logit, are left out."""
        token_ids = torch.tensor(prompt + output)
        self.seen = torch.zeros(vocabulary_size, dtype=torch.bool)
        self.seen[token_ids[token_ids < vocabulary_size]] = True
        self.seen = self.seen.to(device)
        generated = token_ids[len(prompt) :]
        self.counts = torch.bincount(generated, minlength=vocabulary_size).float().to(device)

    def add(self, token_id: torch.Tensor) -> None:
        """Takes one more token, [1] int64."""
        self.seen[token_id] = True
        self.counts[token_id] += 1
