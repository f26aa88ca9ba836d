"""From logits to tokens: all sequences in one pass, each by its own parameters.

The order is that of vLLM and transformers: bias, penalties, guide, temperature, top_k, top_p,
min_p; top_p and min_p look at the probabilities that top_k has left.
"""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass
from itertools import groupby

import torch

from llm_service.engines.torch.ranked import Ranked, told
from llm_service.engines.torch.sequence import Sequence
from llm_service.engines.torch.token_history import TokenHistory
from llm_service.engines.torch.transfer import upload, uploaded
from llm_service.engines.vocabulary import unpacked
from llm_service.sampling import MAX_LOGPROB_COUNT


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
    masks = torch.full((len(sequences), -(-vocabulary_size // 32)), -1, dtype=torch.int32)
    first = 0
    for sequence, same in groupby(sequences):
        end = first + len(list(same))
        if sequence.mask is not None:
            masks[first:end] = sequence.mask.bits[: end - first]
        first = end
    return masks


def sample(ranked: Ranked, sequences: List[Sequence], masks: torch.Tensor | None) -> Choice:
    """Chooses the next token of each sequence.

    Args:
        ranked: the logits of S sequences.
        sequences: those, none of which has ended; one with drafts stands there once more for each,
            one after the other.
        masks: of `guide_masks`; None if no sequence has a guide.

    Returns:
        The choice. A row of NaN gives some token and no error here, which would be all sequences':
        the host is told.
    """
    if masks is None and all(sequence.is_plain for sequence in sequences):
        return Choice(ranked.best, ranked.told)
    logits = ranked.logits.float()
    for row, sequence in zip(logits, sequences, strict=True):
        _adjust(row, sequence)
    if masks is not None:
        allowed = unpacked(upload(masks, logits.device), logits.shape[1])
        logits = logits.masked_fill(~allowed, -torch.inf)
    token_ids = logits.argmax(-1)
    drawn = [i for i, sequence in enumerate(sequences) if not sequence.params.is_greedy]
    for filters in (True, False):
        if indexes := [i for i in drawn if sequences[i].params.has_filters is filters]:
            rows = uploaded(indexes, torch.int64, logits.device)
            token_ids[rows] = _draw(logits[rows], [sequences[i] for i in indexes])
    _remember(token_ids, sequences)
    shown = told(token_ids, ranked.is_finite)
    return Choice(token_ids, shown, *_logprobs(token_ids, logits, sequences))


def _adjust(logits: torch.Tensor, sequence: Sequence) -> None:
    """Applies to one row [vocabulary_size], in place, what its request asks for."""
    params = sequence.params
    if params.logit_bias:
        token_ids, biases = zip(*params.logit_bias, strict=True)
        logits[_ids(token_ids, logits)] += uploaded(biases, torch.float32, logits.device)
    if params.has_penalties:
        _penalise(logits, sequence)
    # A guide has its own say on the end.
    bans_end = sequence.output_length < params.min_tokens and sequence.matcher is None
    if bans_end and params.stop_token_ids:
        logits[_ids(tuple(params.stop_token_ids), logits)] = -torch.inf


def _penalise(logits: torch.Tensor, sequence: Sequence) -> None:
    params = sequence.params
    if sequence.history is None:
        prompt = sequence.token_ids[: sequence.prompt_length]
        output = sequence.token_ids[sequence.prompt_length :]
        sequence.history = TokenHistory(prompt, output, len(logits), logits.device)
    history, penalty = sequence.history, params.repetition_penalty
    if penalty != 1:
        penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
        torch.where(history.seen, penalised, logits, out=logits)
    logits -= params.frequency_penalty * history.counts
    logits -= params.presence_penalty * (history.counts > 0)


def _remember(token_ids: torch.Tensor, sequences: List[Sequence]) -> None:
    for index, sequence in enumerate(sequences):
        if sequence.history is not None:
            sequence.history.add(token_ids[index : index + 1])


def _ids(token_ids: tuple[int, ...], logits: torch.Tensor) -> torch.Tensor:
    return uploaded(token_ids, torch.int64, logits.device)


def _draw(logits: torch.Tensor, sequences: List[Sequence]) -> torch.Tensor:
    """Draws one token a row [R, vocabulary_size] -> [R]; either all rows filter, or none."""
    if sequences[0].params.has_filters:
        # Stable: a tie must not be decided by what else is in the batch.
        logits, token_ids = logits.sort(descending=True, stable=True)
        probabilities = _filtered_probabilities(logits, sequences)
        return token_ids.gather(-1, _drawn_places(probabilities, sequences))[:, 0]
    temperature = _column([sequence.params.temperature for sequence in sequences], logits)
    logits = logits - logits.amax(-1, keepdim=True)
    return _drawn_places((logits / temperature).softmax(-1), sequences)[:, 0]


def _drawn_places(probabilities: torch.Tensor, sequences: List[Sequence]) -> torch.Tensor:
    """Returns [R, 1]: where each sequence's random point falls into the probabilities [R, N]."""
    # A point below the total mass falls on the token whose share of the mass covers it.
    mass = probabilities.cumsum(-1)
    points = _column([sequence.random.random() for sequence in sequences], probabilities)
    places = torch.searchsorted(mass, points * mass[:, -1:], right=True)
    # Rounding may put the point on the total itself, which lies behind the last token left.
    last = probabilities.shape[-1] - 1 - (probabilities > 0).flip(-1).int().argmax(-1, keepdim=True)
    return places.minimum(last)


def _filtered_probabilities(logits: torch.Tensor, sequences: List[Sequence]) -> torch.Tensor:
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


def _column(values: list[float] | list[int], like: torch.Tensor) -> torch.Tensor:
    return uploaded(values, torch.float32, like.device)[:, None]


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
