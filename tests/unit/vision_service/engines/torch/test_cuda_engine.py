"""The CUDA engine: the sizes of its graphs; on a GPU also batches, padding and overlap."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from tests.unit.vision_service.checkpoints import SMALL_6B, write_checkpoint
from vision_service.checkpoint import VisionConfig
from vision_service.engines.base import VisionEngine
from vision_service.engines.create import create_engine
from vision_service.engines.torch.cuda_engine import graph_tile_counts
from vision_service.settings import Settings


def test_the_graphs_of_26_tiles() -> None:
    assert graph_tile_counts(26) == [1, 2, 3, 4, 6, 7, 10, 13, 20, 26]


def test_at_most_a_third_of_a_graph_is_padding() -> None:
    for max_count in range(1, 200):
        counts = graph_tile_counts(max_count)
        assert (counts[0], counts[-1]) == (1, max_count)
        for smaller, larger in zip(counts, counts[1:], strict=False):
            assert larger - (smaller + 1) <= larger / 3


def engine_of(path: Path, device: str) -> VisionEngine:
    settings = Settings.model_validate(
        {
            "checkpoint": path,
            "torch": {"device": device, "dtype": "float32"},
            "max_batch_tile_count": 7,
        }
    )
    return create_engine(settings, VisionConfig.from_checkpoint(path))


def image(tile_count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (tile_count, 3, 28, 28), dtype=torch.uint8, generator=generator)


@pytest.mark.gpu
def test_embeddings_are_those_of_the_cpu(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, SMALL_6B)
    cuda, cpu = engine_of(path, "cuda"), engine_of(path, "cpu")
    assert cuda.weights_sha256 == cpu.weights_sha256
    for tile_count in (1, 5, 7, 16):
        tiles = image(tile_count, tile_count)
        expected = cpu.encode(tiles)
        torch.testing.assert_close(cuda.encode(tiles), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
def test_the_weights_stay_whatever_else_takes_memory(tmp_path: Path) -> None:
    engine = engine_of(write_checkpoint(tmp_path, SMALL_6B), "cuda")
    expected = engine.encode(image(5, 0))
    gc.collect()
    # Takes all that PyTorch believes to be free of what it has, piece by piece.
    sizes = [2**power for power in range(24, 8, -1)]
    taken = []
    reserved = torch.cuda.memory_reserved()
    for size in sizes:
        while torch.cuda.memory_reserved() == reserved:
            taken.append(torch.full((size,), 255, dtype=torch.uint8, device="cuda"))
        reserved = torch.cuda.memory_reserved()
    torch.cuda.synchronize()
    assert torch.equal(engine.encode(image(5, 0)), expected)


@pytest.mark.gpu
def test_batches_in_flight_do_not_mix(tmp_path: Path) -> None:
    engine = engine_of(write_checkpoint(tmp_path, SMALL_6B), "cuda")
    images = [[image(1 + seed % 3, seed), image(2, 100 + seed)] for seed in range(8)]
    alone = [[engine.encode(tiles) for tiles in batch] for batch in images]
    batches = [engine.submit(batch) for batch in images]
    assert [batch.padding_tile_count for batch in batches] == [0, 0, 1, 0, 0, 1, 0, 0]
    for batch, expected in zip(batches, alone, strict=True):
        for found, embeddings in zip(batch.wait(), expected, strict=True):
            assert found.untyped_storage().nbytes() == found.nbytes
            torch.testing.assert_close(found, embeddings, rtol=1e-3, atol=1e-3)
        assert batch.are_finite() == [True, True]
