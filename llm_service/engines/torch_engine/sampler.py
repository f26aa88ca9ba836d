"""From logits to tokens: each sequence by its own parameters.

The order is that of vLLM and transformers: penalties, temperature, top_k, top_p, min_p; top_p and
min_p look at the probabilities that top_k has left.
"""

from __future__ import annotations

import torch

from llm_service.engines.torch_engine.sequence import Sequence


def sample(logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
    """Chooses the next token of each sequence.

    Args:
        logits: [S, vocabulary_size], any float dtype.
        sequences: S sequences that have not ended.

    Returns:
        S token ids. A row of NaN gives some token, never an error: a bad prompt table spoils its
        own request alone.
    """
    with torch.inference_mode():
        logits = logits.float()
        for row, sequence in zip(logits, sequences, strict=True):
            _penalise(row, sequence)
        token_ids: list[int] = logits.argmax(-1).tolist()
        drawn = [i for i, sequence in enumerate(sequences) if not sequence.params.is_greedy]
        if drawn:
            choices = _draw(logits[drawn], [sequences[i] for i in drawn])
            for i, token_id in zip(drawn, choices, strict=True):
                token_ids[i] = token_id
        return token_ids


def _penalise(logits: torch.Tensor, sequence: Sequence) -> None:
    """Applies to one row [vocabulary_size], in place, what depends on the tokens so far."""
    params, output = sequence.params, sequence.output_token_ids
    if params.repetition_penalty != 1:
        seen = _tensor(sequence.token_ids, logits)
        seen = seen[seen < len(logits)]  # virtual tokens have no logit
        found = logits[seen]
        penalty = params.repetition_penalty
        logits[seen] = torch.where(found > 0, found / penalty, found * penalty)
    if params.presence_penalty or params.frequency_penalty:
        counts = torch.bincount(_tensor(output, logits), minlength=len(logits))
        logits -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
    if len(output) < params.min_tokens:
        logits[_tensor(list(params.stop_token_ids), logits)] = -torch.inf


def _tensor(token_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
    return torch.tensor(token_ids, dtype=torch.int64, device=logits.device)


def _draw(logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
    """Draws one token a row [R, vocabulary_size] from what the filters leave."""
    logits, token_ids = logits.sort(descending=True)
    probabilities = _filtered_probabilities(logits, sequences)
    # A point below the total mass falls on the token whose share of the mass covers it.
    mass = probabilities.cumsum(-1)
    points = torch.cat([torch.rand(1, generator=sequence.generator) for sequence in sequences])
    chosen = torch.searchsorted(mass, points.to(mass.device)[:, None] * mass[:, -1:], right=True)
    # Rounding may put the point on the total itself, which lies behind the last token left.
    last = (probabilities > 0).sum(-1, keepdim=True).clamp(min=1) - 1
    return token_ids.gather(-1, chosen.minimum(last))[:, 0].tolist()


def _filtered_probabilities(logits: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor:
    """Returns probabilities [R, vocabulary_size], not normalised, 0 for what is filtered out.

    Every filter keeps a head of a row, because `logits` are sorted from high to low.
    """
    params = [sequence.params for sequence in sequences]
    temperature = _column([p.temperature for p in params], logits)
    top_k = _column([p.top_k or logits.shape[-1] for p in params], logits)
    top_p = _column([p.top_p for p in params], logits)
    min_p = _column([p.min_p for p in params], logits)
    ranks = torch.arange(logits.shape[-1], device=logits.device)
    # The best logit becomes 0 first, so that no small temperature makes an infinity of it.
    logits = (logits - logits[:, :1]) / temperature
    probabilities = logits.masked_fill(ranks >= top_k, -torch.inf).softmax(-1)
    mass_before = probabilities.cumsum(-1) - probabilities
    kept = (mass_before < top_p) & (probabilities >= min_p * probabilities[:, :1])
    return probabilities * kept


def _column(values: list[float] | list[int], logits: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=logits.device)[:, None]
