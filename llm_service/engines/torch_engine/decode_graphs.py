"""Decodes under CUDA graphs: one recorded step for each of several numbers of sequences."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import torch

# One sequence, few, then by eights; a step with a number between takes the next larger graph.
GRAPH_SIZES = (1, 2, 4, *range(8, 513, 8))

Decode = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class DecodeGraphs:
    """Replays a decode of `rows` [3, D] and `block_tables` [D, W] as StepInputs has them.

    What a graph needs besides its D sequences is padding, which writes to a block of its own.
    """

    def __init__(
        self,
        decode: Decode,
        max_count: int,
        table_width: int,
        padding: tuple[int, int, int],
        device: torch.device,
    ) -> None:
        """Records the graphs: seconds, and hundreds of megabytes.

        Args:
            decode: the step to record: logits [D, vocabulary_size] of rows and block tables.
            max_count: most sequences of a step.
            table_width: W, the blocks of the longest context.
            padding: the row of a sequence that is none.
            device: a CUDA device.
        """
        self._sizes = [size for size in GRAPH_SIZES if size < max_count] + [max_count]
        self._padding = torch.tensor(padding, device=device)[:, None].repeat(1, max_count)
        self._rows = self._padding.clone()
        self._block_tables = torch.zeros(max_count, table_width, dtype=torch.int32, device=device)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        pool = None
        for size in reversed(self._sizes):
            self._graphs[size] = self._record(decode, size, pool)
            pool = self._graphs[size][0].pool()

    def run(self, rows: torch.Tensor, block_tables: torch.Tensor) -> torch.Tensor:
        """Returns the logits [D, vocabulary_size], which the next run overwrites."""
        count, width = block_tables.shape
        size = self._sizes[bisect_left(self._sizes, count)]
        self._rows[:, :count] = rows
        self._rows[:, count:size] = self._padding[:, count:size]
        self._block_tables[:count, :width] = block_tables
        graph, logits = self._graphs[size]
        graph.replay()
        return logits[:count]

    def _record(
        self, decode: Decode, size: int, pool: object
    ) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        rows, block_tables = self._rows[:, :size], self._block_tables[:size]
        decode(rows, block_tables)  # compiles what is compiled at first use
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):  # type: ignore[arg-type] # an opaque handle
            logits = decode(rows, block_tables)
        return graph, logits
