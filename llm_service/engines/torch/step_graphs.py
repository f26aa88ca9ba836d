"""Steps under CUDA graphs: recorded for some sizes, each replayed for all steps up to it.

Launching a step's kernels one by one takes the host some 10 milliseconds, replaying them none.
What a graph has room for beyond its step is padding, which writes to a block of its own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from llm_service.engines.torch.kernels.base import TileSet
from llm_service.engines.torch.ranked import Ranked
from llm_service.engines.torch.step_inputs import StepInputs
from llm_service.engines.torch.streams import capture_stream
from llm_service.engines.torch.transfer import RowsUpload

# One sequence, few, then by eights.
DECODE_SIZES = (1, 2, 4, *range(8, 513, 8))
# Products of matrices take little longer for the padding up to these.
TOKEN_SIZES = (16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 2048)
FURTHER_TOKEN_SIZE = 1024
# From so many tokens on, prompts are read by tiles over their whole contexts, and decodes apart
# from them, in so many parts: few of them may be long.
LARGE_STEP_TOKEN_COUNT = 768
DECODE_SPLIT_COUNT = 4

# Before the block table in a row of DecodeGraphs: 64 bytes, so that all tables are aligned alike.
HEAD_SIZE = 16
SLOT = 3

Output = TypeVar("Output")
Decode = Callable[[torch.Tensor, torch.Tensor], Ranked]
Placed = tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[TileSet, ...]]
Mixed = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, tuple[TileSet, ...], torch.Tensor], torch.Tensor
]


@dataclass(frozen=True)
class StepLimits:
    """How large a step may be.

    Attributes:
        max_running: most sequences.
        max_token_count: most tokens.
        table_width: W, the blocks of the longest context.
        tile_size: tokens of a tile.
        takes_whole_tiles: see Kernels.
        padding: [3, 1] int64, the row of a token that is none, on the CUDA device.
    """

    max_running: int
    max_token_count: int
    table_width: int
    tile_size: int
    takes_whole_tiles: bool
    padding: torch.Tensor

    def zeros(self, *shape: int) -> torch.Tensor:
        """Returns int32 zeros on the device."""
        return torch.zeros(shape, dtype=torch.int32, device=self.padding.device)


class Graph(NamedTuple, Generic[Output]):
    """A recorded step, and what a replay writes its output to."""

    recording: torch.cuda.CUDAGraph
    output: Output


class DecodeGraphs:
    """Replays decodes, whose inputs come to the device in one copy.

    A row of it has a sequence's token id, its place and its place in the cache, the sequence's
    slot, and from HEAD_SIZE on the block table. Padding has the slot behind the last.
    """

    def __init__(self, decode: Decode, limits: StepLimits) -> None:
        """Records `decode`: what rows [4, D] int64 and block tables [D, W] give."""
        largest = limits.max_running
        self._sizes = [size for size in DECODE_SIZES if size < largest] + [largest]
        self._padding = [*limits.padding.flatten().tolist(), largest]
        self._inputs = limits.zeros(largest, HEAD_SIZE + limits.table_width)
        self._inputs[:, : SLOT + 1] = torch.tensor(self._padding)
        self._upload = RowsUpload(self._inputs)
        self._graphs: dict[int, Graph[Ranked]] = {}
        for size in reversed(self._sizes):
            step = partial(_decode_inputs, decode)
            self._graphs[size] = _record(step, (self._inputs[:size],), self._graphs)

    def run(self, inputs: StepInputs) -> Ranked:
        """Returns what decodes alone give; the next run overwrites it."""
        count = inputs.decode_count
        size = self._sizes[bisect_left(self._sizes, count)]
        block_tables = inputs.block_tables(count)
        rows = self._upload.begin()
        rows[:count, :SLOT] = inputs.rows.T
        rows[:count, SLOT] = inputs.slots
        rows[:count, HEAD_SIZE : HEAD_SIZE + block_tables.shape[1]] = block_tables
        rows[count:size, : SLOT + 1] = self._padding
        self._upload.copy(size)
        graph, ranked = self._graphs[size]
        graph.replay()
        return ranked.head(count)


def _decode_inputs(decode: Decode, inputs: torch.Tensor) -> Ranked:
    heads = inputs[:, : SLOT + 1].T
    rows = torch.empty(heads.shape, dtype=torch.int64, device=inputs.device).copy_(heads)
    return decode(rows, inputs[:, HEAD_SIZE:])


class MixedStep(NamedTuple):
    """T tokens of any sequences.

    Attributes:
        embeddings: [T, hidden_size].
        rows: [3, T] int64, see StepInputs.
        block_tables: [sequences, W] int32.
        decodes: [D, 3] int32, tiles of one token each; none where they are not kept apart.
        tiles: [N, 3] int32, those of all other tokens, see TileSet.
    """

    embeddings: torch.Tensor
    rows: torch.Tensor
    block_tables: torch.Tensor
    decodes: torch.Tensor
    tiles: torch.Tensor


class MixedGraphs:
    """Replays steps of T tokens of any sequences, all of them in tiles."""

    def __init__(self, mixed: Mixed, limits: StepLimits, embedding: torch.Tensor) -> None:
        """Records `mixed`: the logits [max_running, vocabulary_size] of what `run` takes.

        `embedding` is that of any token, [1, hidden_size].
        """
        self._sizes = token_sizes(limits.max_token_count)
        largest = self._sizes[-1]
        self._limits = limits
        self._rows = limits.padding.repeat(1, largest)
        self._embeddings = embedding.repeat(largest, 1)
        self._block_tables = limits.zeros(limits.max_running, limits.table_width)
        self._decodes = limits.zeros(limits.max_running, 3)
        self._tiles = limits.zeros(self._tile_count(largest), 3)
        self._sampled_rows = limits.zeros(limits.max_running).long()
        self._graphs: dict[int, Graph[torch.Tensor]] = {}
        for size in reversed(self._sizes):
            arguments = (*self._places(size), self._sampled_rows)
            self._graphs[size] = _record(mixed, arguments, self._graphs)

    def keeps_decodes_apart(self, token_count: int) -> bool:
        """Whether a step of so many tokens takes decodes as tiles of their own."""
        is_large = self._size(token_count) >= LARGE_STEP_TOKEN_COUNT
        return is_large and self._limits.takes_whole_tiles

    def run(self, step: MixedStep, sampled_rows: torch.Tensor) -> torch.Tensor:
        """Returns the logits [S, vocabulary_size], which the next run overwrites.

        Args:
            step: the tokens.
            sampled_rows: [S] int64, those whose logits are wanted.
        """
        self.placed(step)
        _fill(self._sampled_rows, sampled_rows)
        graph, logits = self._graphs[self._size(len(step.embeddings))]
        graph.replay()
        return logits[: len(sampled_rows)]

    def placed(self, step: MixedStep) -> Placed:
        """Returns a step with the padding of its graph, for who launches it: no new shapes.

        It lies where the next step's will.
        """
        count, (table_count, width) = len(step.embeddings), step.block_tables.shape
        size = self._size(count)
        self._embeddings[:count] = step.embeddings
        self._rows[:, :count] = step.rows
        self._rows[:, count:size] = self._limits.padding
        self._block_tables[:table_count, :width] = step.block_tables
        _fill(self._decodes, step.decodes)
        _fill(self._tiles, step.tiles)
        return self._places(size)

    def _places(self, size: int) -> Placed:
        return (
            self._embeddings[:size],
            self._rows[:, :size],
            self._block_tables,
            self._tile_sets(size),
        )

    def _size(self, token_count: int) -> int:
        return self._sizes[bisect_left(self._sizes, token_count)]

    def _tile_count(self, size: int) -> int:
        """Returns how many tiles so many tokens have at most: each sequence a last one."""
        return min(size, -(-size // self._limits.tile_size) + self._limits.max_running)

    def _tile_sets(self, size: int) -> tuple[TileSet, ...]:
        tiles = self._tiles[: self._tile_count(size)]
        if not self.keeps_decodes_apart(size):
            return (TileSet(tiles, self._limits.tile_size),)
        decodes = TileSet(self._decodes, 1, least_split_count=DECODE_SPLIT_COUNT)
        return decodes, TileSet(tiles, self._limits.tile_size, is_whole=True)


def _fill(place: torch.Tensor, given: torch.Tensor) -> None:
    place[: len(given)] = given
    place[len(given) :] = 0


def token_sizes(max_token_count: int) -> list[int]:
    """Returns the sizes of graphs, ascending, the last of them for the largest step."""
    further = range(TOKEN_SIZES[-1], max_token_count + FURTHER_TOKEN_SIZE, FURTHER_TOKEN_SIZE)
    sizes = sorted({*TOKEN_SIZES, *further})
    return sizes[: bisect_left(sizes, max_token_count) + 1]


@dataclass(frozen=True)
class StepGraphs:
    """All graphs of one model. Recording them takes seconds, and hundreds of megabytes."""

    decode: DecodeGraphs
    mixed: MixedGraphs
    tile_size: int


def _record(
    step: Callable[..., Output],
    arguments: tuple[Any, ...],
    others: Mapping[int, Graph[Output]],
) -> Graph[Output]:
    """Records a step on these very tensors, in the memory that the other graphs use, too."""
    step(*arguments)  # compiles what is compiled at first use
    torch.cuda.synchronize()
    pool = next((graph.pool() for graph, _ in others.values()), None)
    graph = torch.cuda.CUDAGraph()
    # By itself a recording forbids calls that other threads may make, for another engine.
    with torch.cuda.graph(
        graph, pool=pool, stream=capture_stream(), capture_error_mode="thread_local"
    ):
        output = step(*arguments)
    return Graph(graph, output)
