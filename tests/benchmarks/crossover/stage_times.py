"""What each stage of a request takes on one H200, as it was measured with random weights.

Sources: docs/benchmarks/README.md and docs/benchmarks/h200/ for the engines; the costs of the host
(launching a step, passing an embedding on) are from a profile of the same machine on 2026-11-29.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MS = 1e-3
# The prompt of one picture of 13 tiles, with which the engines were measured.
MEASURED_TOKEN_COUNT = 3_383
# InternViT-300M: batches of 1 and 13 tiles take 1.98 and 18.4 ms (h200/vision.md).
BATCH_SECONDS, TILE_SECONDS = 0.61 * MS, 1.37 * MS
# A thread decodes and tiles a picture of 13 tiles in 75 ms on an idle machine.
PREPROCESS_TILE_SECONDS = 75 * MS / 13
# The host launches a step of 1, 30 and 64 sequences in 1.2, 3.5 and 5.0 ms; the GPU waits for it.
LAUNCH_SECONDS, LAUNCH_SEQUENCE_SECONDS = 1.2 * MS, 0.06 * MS
# An embedding of 27.3 MB takes 95 ms from vision to LLM on an idle machine, of which the gateway's
# one thread computes 83.
RELAY_BYTE_SECONDS, TRAVEL_BYTE_SECONDS = 83 * MS / 27.3e6, 12 * MS / 27.3e6


@dataclass(frozen=True)
class Span:
    """The tokens of one sequence that a step computes: those from `begin` to before `end`."""

    begin: int
    end: int

    @property
    def is_decode(self) -> bool:
        """Whether it is one more token after a prompt that has been read."""
        return self.end - self.begin == 1


@dataclass(frozen=True)
class StageTimes:
    """The stages of one shape. Seconds.

    Attributes:
        hidden_size: values of an embedding's row.
        max_step_token_count: most tokens in one step of the LLM engine.
        prefill_token_seconds: to read a token of a prompt, attention left out.
        attention_pair_seconds: a prompt's attention, for each pair of tokens.
        weights_seconds: a step of one sequence that has no context.
        context_token_seconds: in addition for each token of the contexts that a step looks at.
    """

    hidden_size: int
    max_step_token_count: int
    prefill_token_seconds: float
    attention_pair_seconds: float
    weights_seconds: float
    context_token_seconds: float

    def step(self, spans: Sequence[Span]) -> float:
        """Returns how long the GPU computes a step."""
        read = [span for span in spans if not span.is_decode]
        read_count = sum(span.end - span.begin for span in read)
        products = max(self.weights_seconds, self.prefill_token_seconds * read_count)
        pair_count = sum(span.end**2 - span.begin**2 for span in read)
        context_count = sum(span.end for span in spans if span.is_decode)
        attention = self.attention_pair_seconds * pair_count
        return products + attention + self.context_token_seconds * context_count

    def prefill(self, token_count: int) -> float:
        """Returns how long a whole prompt takes that is read alone."""
        return self.step([Span(0, token_count)])

    def relay(self, row_count: int) -> float:
        """Returns how long an embedding keeps the gateway's thread; others wait for it."""
        return RELAY_BYTE_SECONDS * 2 * row_count * self.hidden_size

    def travel(self, row_count: int) -> float:
        """Returns what an embedding's way takes in addition, beside others."""
        return TRAVEL_BYTE_SECONDS * 2 * row_count * self.hidden_size


def encode(tile_count: int) -> float:
    """Returns how long the GPU computes a batch of tiles."""
    return BATCH_SECONDS + TILE_SECONDS * tile_count


def launch(sequence_count: int) -> float:
    """Returns how long the host needs to launch a step."""
    return LAUNCH_SECONDS + LAUNCH_SEQUENCE_SECONDS * (sequence_count - 1)


# 8B: prefill 85.6 ms, 7.1 of them attention; decode 4.63 ms alone and 8.14 for 32 sequences.
# 1B: prefill 14.6 ms, its attention by the number of layers and heads; decode 0.92 and 1.56 ms.
SHAPES: Mapping[str, StageTimes] = {
    "8B": StageTimes(
        hidden_size=4096,
        max_step_token_count=8192,
        prefill_token_seconds=78.5 * MS / MEASURED_TOKEN_COUNT,
        attention_pair_seconds=7.1 * MS / MEASURED_TOKEN_COUNT**2,
        weights_seconds=4.51 * MS,
        context_token_seconds=34e-9,
    ),
    "1B": StageTimes(
        hidden_size=896,
        max_step_token_count=1024,
        prefill_token_seconds=13.4 * MS / MEASURED_TOKEN_COUNT,
        attention_pair_seconds=1.2 * MS / MEASURED_TOKEN_COUNT**2,
        weights_seconds=0.90 * MS,
        context_token_seconds=6e-9,
    ),
}
