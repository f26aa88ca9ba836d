"""Step graphs: what one step leaves in their memory must not reach the next."""

from __future__ import annotations

import pytest
import torch

from llm_service.engines.torch import step_graphs
from llm_service.engines.torch.step_graphs import DecodeGraphs, MixedGraphs, StepLimits
from tests.unit.llm_service.engines.torch.replays import replayed

PADDING = torch.tensor([[0], [0], [99]])
LIMITS = StepLimits(max_running=3, table_width=4, tile_size=2, padding=PADDING)
Arguments = tuple[torch.Tensor, ...]


@pytest.fixture(autouse=True)
def _sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    replayed(monkeypatch)
    monkeypatch.setattr(step_graphs, "TOKEN_SIZES", (4, 8))


def _mixed_step(token_count: int, sequence_count: int) -> Arguments:
    """Returns a step of ones, twos, threes ...: nothing that padding could be mistaken for."""
    return (
        torch.full((token_count, 5), 1.0),
        torch.full((3, token_count), 2),
        torch.full((sequence_count, 3), 3, dtype=torch.int32),
        torch.tensor([[0, 1, row] for row in range(sequence_count)], dtype=torch.int32),
        torch.arange(token_count - sequence_count, token_count),
    )


def test_a_small_mixed_step_after_a_large_one_sees_only_its_own() -> None:
    seen: list[Arguments] = []

    def step(*arguments: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(argument.clone() for argument in arguments))
        embeddings, *_, sampled_rows = arguments
        return embeddings[sampled_rows]

    graphs = MixedGraphs(step, LIMITS, torch.zeros(1, 5))
    assert graphs.fits(8)
    assert not graphs.fits(9)
    assert graphs.run(*_mixed_step(8, 3)).shape == (3, 5)
    assert graphs.run(*_mixed_step(2, 1)).shape == (1, 5)
    _, rows, _, tiles, sampled_rows = seen[-1]
    assert torch.equal(rows, torch.cat([torch.full((3, 2), 2), PADDING, PADDING], dim=1))
    assert tiles.tolist() == [[0, 1, 0]] + [[0, 0, 0]] * 3
    assert sampled_rows.tolist() == [1, 0, 0]


def test_decodes_are_padded_to_the_next_size() -> None:
    seen: list[Arguments] = []

    def step(*arguments: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(argument.clone() for argument in arguments))
        return arguments[0][:1].T

    graphs = DecodeGraphs(step, LIMITS)
    for count in (3, 1, 3, 2):
        rows = torch.full((3, count), 2)
        tables = torch.full((count, 3), 3, dtype=torch.int32)
        assert graphs.run(rows, tables).tolist() == [[2]] * count
        size = seen[-1][0].shape[1]
        assert size >= count
        assert torch.equal(seen[-1][0][:, count:], PADDING.repeat(1, size - count))
