"""Steps under CUDA graphs: recorded for some sizes, each replayed for all steps up to it.

Launching a step's kernels one by one takes the host some 10 milliseconds, replaying them none.
What a graph has room for beyond its step is padding, which writes to a block of its own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import torch

# One sequence, few, then by eights.
DECODE_SIZES = (1, 2, 4, *range(8, 513, 8))
# Beyond the last, the device needs longer than the host.
TOKEN_SIZES = (16, 32, 64, 128, 256, 512, 1024)

Graph = tuple[torch.cuda.CUDAGraph, torch.Tensor]
Decode = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Mixed = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor
]


@dataclass(frozen=True)
class StepLimits:
    """How large a step may be.

    Attributes:
        max_running: most sequences.
        table_width: W, the blocks of the longest context.
        tile_size: tokens of a tile.
        padding: [3, 1] int64, the row of a token that is none, on the CUDA device.
    """

    max_running: int
    table_width: int
    tile_size: int
    padding: torch.Tensor

    def zeros(self, *shape: int) -> torch.Tensor:
        """Returns int32 zeros on the device."""
        return torch.zeros(shape, dtype=torch.int32, device=self.padding.device)


class DecodeGraphs:
    """Replays decodes of `rows` [3, D] as StepInputs has them, and `block_tables` [D, W]."""

    def __init__(self, decode: Decode, limits: StepLimits) -> None:
        """Records `decode`: the logits [D, vocabulary_size] of rows and block tables."""
        largest = limits.max_running
        self._sizes = [size for size in DECODE_SIZES if size < largest] + [largest]
        self._padding = limits.padding
        self._rows = limits.padding.repeat(1, largest)
        self._block_tables = limits.zeros(largest, limits.table_width)
        self._graphs: dict[int, Graph] = {}
        for size in reversed(self._sizes):
            arguments = (self._rows[:, :size], self._block_tables[:size])
            self._graphs[size] = _record(decode, arguments, self._graphs)

    def run(self, rows: torch.Tensor, block_tables: torch.Tensor) -> torch.Tensor:
        """Returns the logits [D, vocabulary_size], which the next run overwrites."""
        count, width = block_tables.shape
        size = self._sizes[bisect_left(self._sizes, count)]
        self._rows[:, :count] = rows
        self._rows[:, count:size] = self._padding
        self._block_tables[:count, :width] = block_tables
        graph, logits = self._graphs[size]
        graph.replay()
        return logits[:count]


class MixedGraphs:
    """Replays steps of T tokens of any sequences, all of them in tiles."""

    def __init__(self, mixed: Mixed, limits: StepLimits, embedding: torch.Tensor) -> None:
        """Records `mixed`: the logits [max_running, vocabulary_size] of what `run` takes.

        `embedding` is that of any token, [1, hidden_size].
        """
        largest = TOKEN_SIZES[-1]
        self._padding = limits.padding
        self._rows = limits.padding.repeat(1, largest)
        self._embeddings = embedding.repeat(largest, 1)
        self._block_tables = limits.zeros(limits.max_running, limits.table_width)
        # At worst each sequence has one tile that is not full.
        self._tile_counts = {
            size: min(size, -(-size // limits.tile_size) + limits.max_running)
            for size in TOKEN_SIZES
        }
        self._tiles = limits.zeros(self._tile_counts[largest], 3)
        self._sampled_rows = limits.zeros(limits.max_running).long()
        self._graphs: dict[int, Graph] = {}
        for size in reversed(TOKEN_SIZES):
            arguments = (
                self._embeddings[:size],
                self._rows[:, :size],
                self._block_tables,
                self._tiles[: self._tile_counts[size]],
                self._sampled_rows,
            )
            self._graphs[size] = _record(mixed, arguments, self._graphs)

    def fits(self, token_count: int) -> bool:
        """Returns whether a step of so many tokens has a graph."""
        return token_count <= TOKEN_SIZES[-1]

    def run(
        self,
        embeddings: torch.Tensor,
        rows: torch.Tensor,
        block_tables: torch.Tensor,
        tiles: torch.Tensor,
        sampled_rows: torch.Tensor,
    ) -> torch.Tensor:
        """Returns the logits [S, vocabulary_size], which the next run overwrites.

        Args:
            embeddings: [T, hidden_size].
            rows: [3, T] int64, see StepInputs.
            block_tables: [sequences, W] int32.
            tiles: [N, 3] int32, see BatchLayout.
            sampled_rows: [S] int64, the tokens whose logits are wanted.
        """
        count, (table_count, width) = len(embeddings), block_tables.shape
        size = TOKEN_SIZES[bisect_left(TOKEN_SIZES, count)]
        self._embeddings[:count] = embeddings
        self._rows[:, :count] = rows
        self._rows[:, count:size] = self._padding
        self._block_tables[:table_count, :width] = block_tables
        self._tiles[: len(tiles)] = tiles
        self._tiles[len(tiles) : self._tile_counts[size]] = 0
        self._sampled_rows[: len(sampled_rows)] = sampled_rows
        self._sampled_rows[len(sampled_rows) :] = 0
        graph, logits = self._graphs[size]
        graph.replay()
        return logits[: len(sampled_rows)]


@dataclass(frozen=True)
class StepGraphs:
    """All graphs of one model. Recording them takes seconds, and hundreds of megabytes."""

    decode: DecodeGraphs
    mixed: MixedGraphs
    tile_size: int


def _record(
    step: Callable[..., torch.Tensor],
    arguments: tuple[torch.Tensor, ...],
    others: dict[int, Graph],
) -> Graph:
    """Records a step on these very tensors, in the memory that the other graphs use, too."""
    step(*arguments)  # compiles what is compiled at first use
    torch.cuda.synchronize()
    pool = next((graph.pool() for graph, _ in others.values()), None)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        logits = step(*arguments)
    return graph, logits
