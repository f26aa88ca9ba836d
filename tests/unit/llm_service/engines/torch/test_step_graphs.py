"""Step graphs: what one step leaves in their memory must not reach the next."""

from __future__ import annotations

from array import array
from dataclasses import replace

import pytest
import torch

from llm_service.engines.base import Prompt
from llm_service.engines.torch import step_graphs
from llm_service.engines.torch.block_tables import BlockTables
from llm_service.engines.torch.kernels.base import TileSet
from llm_service.engines.torch.ranked import Ranked
from llm_service.engines.torch.sequence import Sequence
from llm_service.engines.torch.step_graphs import (
    DecodeGraphs,
    MixedGraphs,
    MixedStep,
    StepLimits,
    token_sizes,
)
from llm_service.engines.torch.step_inputs import StepInputs
from llm_service.sampling import SamplingParams
from tests.unit.llm_service.engines.torch.replays import replayed

DECODE_PADDING = torch.tensor([[0], [0], [99], [3]])
PADDING = torch.tensor([[0], [0], [99]])
LIMITS = StepLimits(
    max_running=3,
    max_token_count=8,
    table_width=4,
    tile_size=2,
    takes_whole_tiles=True,
    padding=PADDING,
)
Arguments = tuple[torch.Tensor, ...]


@pytest.fixture(autouse=True)
def _sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    replayed(monkeypatch)
    monkeypatch.setattr(step_graphs, "TOKEN_SIZES", (4, 8))
    monkeypatch.setattr(step_graphs, "LARGE_STEP_TOKEN_COUNT", 8)


def _mixed_step(token_count: int, sequence_count: int) -> tuple[MixedStep, torch.Tensor]:
    """Returns a step of ones, twos, threes ...: nothing that padding could be mistaken for."""
    step = MixedStep(
        torch.full((token_count, 5), 1.0),
        torch.full((3, token_count), 2),
        torch.full((sequence_count, 3), 3, dtype=torch.int32),
        torch.tensor([[0, 1, 0]], dtype=torch.int32),
        torch.tensor([[0, 1, row] for row in range(sequence_count)], dtype=torch.int32),
    )
    return step, torch.arange(token_count - sequence_count, token_count)


def test_a_small_mixed_step_after_a_large_one_sees_only_its_own() -> None:
    seen: list[tuple[torch.Tensor, tuple[TileSet, ...], torch.Tensor]] = []

    def step(
        embeddings: torch.Tensor,
        rows: torch.Tensor,
        _: torch.Tensor,
        tile_sets: tuple[TileSet, ...],
        sampled_rows: torch.Tensor,
    ) -> torch.Tensor:
        copies = tuple(replace(one, tiles=one.tiles.clone()) for one in tile_sets)
        seen.append((rows.clone(), copies, sampled_rows.clone()))
        return embeddings[sampled_rows]

    graphs = MixedGraphs(step, LIMITS, torch.zeros(1, 5))
    assert graphs.run(*_mixed_step(8, 3)).shape == (3, 5)
    _, (decodes, others), _ = seen[-1]
    assert (decodes.size, decodes.is_whole, others.is_whole) == (1, False, True)
    assert decodes.tiles.tolist() == [[0, 1, 0]] + [[0, 0, 0]] * 2
    assert others.tiles[:3].tolist() == [[0, 1, 0], [0, 1, 1], [0, 1, 2]]
    assert graphs.run(*_mixed_step(2, 1)).shape == (1, 5)
    rows, (tiles,), sampled_rows = seen[-1]
    assert torch.equal(rows, torch.cat([torch.full((3, 2), 2), PADDING, PADDING], dim=1))
    assert tiles.tiles.tolist() == [[0, 1, 0]] + [[0, 0, 0]] * 3
    assert sampled_rows.tolist() == [1, 0, 0]


def test_large_steps_alone_keep_decodes_apart() -> None:
    graphs = MixedGraphs(lambda rows, *_: rows, LIMITS, torch.zeros(1, 5))
    assert [graphs.keeps_decodes_apart(count) for count in (1, 4, 5, 8)] == [
        False,
        False,
        True,
        True,
    ]


def test_without_whole_tiles_decodes_are_among_the_others() -> None:
    limits = replace(LIMITS, takes_whole_tiles=False)
    graphs = MixedGraphs(lambda rows, *_: rows, limits, torch.zeros(1, 5))
    assert not graphs.keeps_decodes_apart(8)


def test_there_is_a_graph_for_the_largest_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_graphs, "FURTHER_TOKEN_SIZE", 4)
    assert [token_sizes(count) for count in (1, 4, 5, 8)] == [[4], [4], [4, 8], [4, 8]]
    assert token_sizes(9) == [4, 8, 12]
    assert token_sizes(16) == [4, 8, 12, 16]


def test_decodes_are_padded_to_the_next_size() -> None:
    seen: list[Arguments] = []

    def step(rows: torch.Tensor, block_tables: torch.Tensor) -> Ranked:
        seen.append((rows.clone(), block_tables.clone()))
        return Ranked.of(rows.T.float())

    graphs = DecodeGraphs(step, LIMITS)
    for count in (3, 1, 3, 2):
        assert graphs.run(_decodes(count)).logits.tolist() == [
            [40 + slot, 4, 4 + 2 * slot, slot] for slot in range(count)
        ]
        rows, tables = seen[-1]
        assert tables[:count, :3].tolist() == [[i, i + 1, i + 2] for i in range(count)]
        assert rows.shape[1] >= count
        assert torch.equal(rows[:, count:], DECODE_PADDING.repeat(1, rows.shape[1] - count))


def _decodes(count: int) -> StepInputs:
    """Returns the fifth tokens of so many sequences, whose blocks of 2 begin with their slots."""
    sequences = []
    for slot in range(count):
        prompt = Prompt([1, 2, 3, 4, 40 + slot], torch.empty(0, 1))
        sequence = Sequence(prompt, SamplingParams(), 3, 61)
        sequence.slot, sequence.computed_count, sequence.scheduled_count = slot, 4, 1
        sequence.block_table = array("i", [slot, slot + 1, slot + 2])
        sequences.append(sequence)
    return StepInputs.of(sequences, BlockTables(count, 4, 2), 61)
