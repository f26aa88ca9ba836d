"""What stands for CUDA graphs and tiled kernels on a machine that has neither."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from llm_service.engines.torch import step_graphs
from llm_service.engines.torch.kernels.base import BatchLayout
from llm_service.engines.torch.kernels.torch_kernels import TorchKernels
from llm_service.engines.torch.ranked import Ranked


class TiledKernels(TorchKernels):
    """Attention by tiles, one token after the other."""

    tile_size = 3

    def takes_whole_tiles(self, block_size: int, head_dim: int) -> bool:
        return True

    def attend(self, query: torch.Tensor, cache: torch.Tensor, layout: BatchLayout) -> torch.Tensor:
        if layout.spans:
            return super().attend(query, cache, layout)
        output = torch.full_like(query, torch.nan)
        for first, count, row, size in _tiles(layout):
            assert count <= size
            context = cache[:, layout.block_tables[row]].flatten(1, 2)
            for token in range(first, first + count):
                keys, values = context[:, : layout.context_lengths[token]].transpose(1, 2)
                output[token] = scaled_dot_product_attention(
                    query[None, token, :, None], keys[None], values[None], enable_gqa=True
                )[0, :, 0]
        return output


def _tiles(layout: BatchLayout) -> Iterator[tuple[int, int, int, int]]:
    for tile_set in layout.tile_sets:
        for first, count, row in tile_set.tiles.tolist():
            yield first, count, row, tile_set.size


@dataclass
class Replay:
    """Runs the recorded step again on the very tensors that it was recorded with."""

    step: Callable[..., Any]
    arguments: tuple[Any, ...]
    output: Any
    count: int = 0

    def replay(self) -> None:
        self.count += 1
        for place, value in zip(_tensors(self.output), self._computed(), strict=True):
            place.copy_(value)

    def _computed(self) -> Iterable[torch.Tensor]:
        return _tensors(self.step(*self.arguments))


def replayed(monkeypatch: pytest.MonkeyPatch) -> list[Replay]:
    """Lets step graphs be recorded as replays; returns those that will be."""
    recorded: list[Replay] = []

    def record(
        step: Callable[..., Any], arguments: tuple[Any, ...], _: Any
    ) -> tuple[Replay, torch.Tensor | Ranked]:
        output = step(*arguments)
        own = Ranked(*map(torch.clone, output)) if isinstance(output, Ranked) else output.clone()
        replay = Replay(step, arguments, own)
        recorded.append(replay)
        return replay, own

    monkeypatch.setattr(step_graphs, "_record", record)
    return recorded


def _tensors(output: torch.Tensor | Ranked) -> Iterable[torch.Tensor]:
    return output if isinstance(output, Ranked) else [output]
