"""From logits to tokens: all sequences in one pass, each by its own parameters.

The order is that of vLLM and transformers: bias, penalties, guide, temperature, top_k, top_p,
min_p; top_p and min_p look at the probabilities that top_k has left.
"""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import torch

from llm_service.engines.torch.ranked import Ranked, told
from llm_service.engines.torch.sequence import Sequence
from llm_service.engines.torch.token_histories import TokenHistories
from llm_service.engines.torch.transfer import upload, uploaded
from llm_service.engines.vocabulary import unpacked
from llm_service.sampling import MAX_LOGPROB_COUNT

_PENALTIES = attrgetter("repetition_penalty", "frequency_penalty", "presence_penalty")
_FREE = attrgetter("random", "params.temperature")
_FILTERED = attrgetter(
    "random", "params.temperature", "params.top_k", "params.top_p", "params.min_p"
)


@dataclass(frozen=True)
class Choice:
    """The tokens of S sequences, on the logits' device.

    Attributes:
        token_ids: [S] int64.
        told: [S] int64, the same as the host gets them; see Ranked.
        logprobs: [S, 1 + MAX_LOGPROB_COUNT] float32, of the token and of the most probable ones;
            None if no sequence wants any.
        top: [S, MAX_LOGPROB_COUNT] int64, the most probable ones.
    """

    token_ids: torch.Tensor
    told: torch.Tensor
    logprobs: torch.Tensor | None = None
    top: torch.Tensor | None = None


def guide_masks(sequences: List[Sequence], vocabulary_size: int) -> torch.Tensor:
    """Returns which tokens the guides allow: [S, ceil(vocabulary_size / 32)] int32 of bits.

    The masks have come: that of the next token, then those after drafts. The row of a sequence
    without a guide allows all.
    """
    free = torch.full((1, -(-vocabulary_size // 32)), -1, dtype=torch.int32)
    parts = [free[:0]]  # all that there is where every sequence is held back
    for sequence, same in groupby(sequences):
        count = len(list(same))
        parts.append(
            free.expand(count, -1) if sequence.mask is None else sequence.mask.bits[:count]
        )
    return torch.cat(parts)


def sample(
    ranked: Ranked,
    sequences: List[Sequence],
    masks: torch.Tensor | None,
    histories: TokenHistories,
) -> Choice:
    """Chooses the next token of each sequence.

    Args:
        ranked: the logits of S sequences.
        sequences: those, none of which has ended; one with drafts stands there once more for each,
            one after the other.
        masks: of `guide_masks`; None if no sequence has a guide.
        histories: of all sequences; those of penalised ones are brought up to the choice.

    Returns:
        The choice. A row of NaN gives some token and no error here, which would be all sequences':
        the host is told.
    """
    if masks is None and all(sequence.is_plain for sequence in sequences):
        return Choice(ranked.best, ranked.told)
    logits = ranked.logits.float()
    _add_biases(logits, sequences)
    penalised = _penalised(logits, sequences, histories)
    _ban_ends(logits, sequences)
    if masks is not None:
        allowed = unpacked(upload(masks, logits.device), logits.shape[1])
        logits = logits.masked_fill(~allowed, -torch.inf)
    token_ids = logits.argmax(-1)
    _draw(token_ids, logits, sequences)
    if penalised is not None:
        histories.add(penalised.histories, token_ids[penalised.rows])
    shown = told(token_ids, ranked.is_finite)
    return Choice(token_ids, shown, *_logprobs(token_ids, logits, sequences))


def _add_biases(logits: torch.Tensor, sequences: List[Sequence]) -> None:
    biased = [
        (row, token_id, bias)
        for row, sequence in enumerate(sequences)
        for token_id, bias in sequence.params.logit_bias
    ]
    if biased:
        rows, token_ids, biases = zip(*biased, strict=True)
        places = _places(rows, token_ids, logits)
        logits[places] += uploaded(biases, torch.float32, logits.device)


def _ban_ends(logits: torch.Tensor, sequences: List[Sequence]) -> None:
    """Bans stop tokens where it is too early for them; a guide has its own say on the end."""
    banned = [
        (row, token_id)
        for row, sequence in enumerate(sequences)
        if sequence.output_length < sequence.params.min_tokens and sequence.matcher is None
        for token_id in sequence.params.stop_token_ids
    ]
    if banned:
        rows, token_ids = zip(*banned, strict=True)
        logits[_places(rows, token_ids, logits)] = -torch.inf


def _places(
    rows: List[int], token_ids: List[int], logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    row_indexes, columns = upload(torch.tensor([rows, token_ids]), logits.device)
    return row_indexes, columns


class _Penalised(NamedTuple):
    """Rows of the logits, [R] int64, and of the histories that belong to them."""

    rows: torch.Tensor
    histories: torch.Tensor


def _penalised(
    logits: torch.Tensor, sequences: List[Sequence], histories: TokenHistories
) -> _Penalised | None:
    """Applies penalties to rows of the logits, in place, and returns which; None if there is none.

    What 1 and 0 stand for no penalty change nothing.
    """
    indexes = [row for row, sequence in enumerate(sequences) if sequence.params.has_penalties]
    if not indexes:
        return None
    chosen = [sequences[index] for index in indexes]
    penalised = _Penalised(_rows(indexes, logits), histories.rows(chosen))
    counts, seen = histories.counts[penalised.histories], histories.seen[penalised.histories]
    options = [_PENALTIES(sequence.params) for sequence in chosen]
    repetition, frequency, presence = _columns(options, logits)
    values = logits[penalised.rows]
    repeated = torch.where(values > 0, values / repetition, values * repetition)
    values = torch.where(seen, repeated, values)
    values -= frequency * counts
    values -= presence * (counts > 0)
    logits[penalised.rows] = values
    return penalised


def _draw(token_ids: torch.Tensor, logits: torch.Tensor, sequences: List[Sequence]) -> None:
    """Draws the tokens of the sequences that are not greedy, and puts them into their places."""
    drawn = [i for i, sequence in enumerate(sequences) if not sequence.params.is_greedy]
    for has_filters, draw in ((True, _filtered_draw), (False, _free_draw)):
        if indexes := [i for i in drawn if sequences[i].params.has_filters is has_filters]:
            rows = _rows(indexes, logits)
            token_ids[rows] = draw(logits[rows], [sequences[i] for i in indexes])


def _free_draw(logits: torch.Tensor, sequences: List[Sequence]) -> torch.Tensor:
    """Draws one token a row [R, vocabulary_size] -> [R]."""
    temperature, points = _drawing_columns(sequences, _FREE, logits)
    logits = logits - logits.amax(-1, keepdim=True)
    return _drawn_places((logits / temperature).softmax(-1), points)[:, 0]


def _filtered_draw(logits: torch.Tensor, sequences: List[Sequence]) -> torch.Tensor:
    """Draws one token a row, of those that the filters leave."""
    # Stable: a tie must not be decided by what else is in the batch.
    logits, token_ids = logits.sort(descending=True, stable=True)
    *filters, points = _drawing_columns(sequences, _FILTERED, logits)
    probabilities = _filtered_probabilities(logits, *filters)
    return token_ids.gather(-1, _drawn_places(probabilities, points))[:, 0]


def _drawn_places(probabilities: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Returns [R, 1]: where each row's random point falls into the probabilities [R, N]."""
    # A point below the total mass falls on the token whose share of the mass covers it.
    mass = probabilities.cumsum(-1)
    places = torch.searchsorted(mass, points * mass[:, -1:], right=True)
    # Rounding may put the point on the total itself, which lies behind the last token left.
    last = probabilities.shape[-1] - 1 - (probabilities > 0).flip(-1).int().argmax(-1, keepdim=True)
    return places.minimum(last)


def _filtered_probabilities(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
) -> torch.Tensor:
    """Returns probabilities [R, vocabulary_size], not normalised, 0 for what is filtered out.

    Every filter keeps a head of a row, because `logits` are sorted from high to low.
    """
    ranks = torch.arange(logits.shape[-1], device=logits.device)
    # The best logit becomes 0 first, so that no small temperature makes an infinity of it.
    logits = (logits - logits[:, :1]) / temperature
    # 0 stands for all.
    probabilities = logits.masked_fill((ranks >= top_k) & (top_k > 0), -torch.inf).softmax(-1)
    mass_before = probabilities.cumsum(-1) - probabilities
    kept = (mass_before < top_p) & (probabilities >= min_p * probabilities[:, :1])
    return probabilities * kept


def _drawing_columns(
    sequences: List[Sequence], options: attrgetter[Any], like: torch.Tensor
) -> list[torch.Tensor]:
    """Returns options of sequences, and a random number of each, as columns [R, 1]."""
    rows = [(*values, numbers.random()) for numbers, *values in map(options, sequences)]
    return _columns(rows, like)


def _columns(rows: List[List[float | None]], like: torch.Tensor) -> list[torch.Tensor]:
    """Returns the columns of numbers, [R, 1] float32 each; None becomes 0."""
    table = torch.tensor([[number or 0.0 for number in row] for row in rows], dtype=torch.float32)
    return [column[:, None] for column in upload(table, like.device).unbind(1)]


def _rows(indexes: List[int], like: torch.Tensor) -> torch.Tensor:
    return uploaded(indexes, torch.int64, like.device)


def _logprobs(
    token_ids: torch.Tensor, logits: torch.Tensor, sequences: List[Sequence]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Returns `logprobs` and `top` of a Choice."""
    if all(sequence.params.logprob_count is None for sequence in sequences):
        return None, None
    return ranked_logprobs(token_ids, logits, MAX_LOGPROB_COUNT)


def ranked_logprobs(
    token_ids: torch.Tensor, logits: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the log probabilities of tokens and of the most probable ones, and which those are.

    Args:
        token_ids: [N] int64.
        logits: [N, vocabulary_size] float32.
        count: K, of the most probable ones; those there are, if they are fewer.

    Returns:
        [N, 1 + K] float32 and [N, K] int64, best first.
    """
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(-1, token_ids[:, None])
    best, top = logprobs.topk(min(count, logits.shape[-1]))
    return torch.cat([chosen, best], dim=-1), top
