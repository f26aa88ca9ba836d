"""The GPU benchmark, as far as it goes without one."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.benchmarks import vision_cuda


def test_the_tiny_run_measures_both_models(tmp_path: Path) -> None:
    vision_cuda.main(["--device", "cpu", "--tiny", "--out", str(tmp_path)])
    (document,) = json.loads((tmp_path / "vision_cuda.json").read_text()).values()
    assert set(document["seconds"]) == {"PyTorch", "ours"}
    for seconds in document["seconds"].values():
        counts = {size: len(values) for size, values in seconds.items()}
        assert counts == {"batch of 1": 2, "batch of 2": 2, "batch of 3": 2}
    assert document["table"] in (tmp_path / "vision_cuda.md").read_text()


def test_both_models_are_the_same_function() -> None:
    bench = vision_cuda.bench_of(torch.device("cpu"), tiny=True)
    exact = vision_cuda.random_model(bench.config, bench.device)
    tiles = bench.tiles(2)
    written, ours = (way.encode(tiles) for way in vision_cuda.ways(bench, exact))
    assert vision_cuda.relative_error(ours, written) < 1e-5
