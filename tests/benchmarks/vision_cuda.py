"""The vision tower on one GPU, with random weights: in PyTorch, as the engine has it, the engine.

`python -m tests.benchmarks.vision_cuda --out DIR`
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tests.benchmarks.report import Report, ReportBook
from tests.benchmarks.shapes import CONFIGS
from vision_service.checkpoint import VisionConfig
from vision_service.engines.torch.fused_vit import TORCH_OPERATIONS, FusedVisionModel
from vision_service.engines.torch.intern_vit import VisionModel

if TYPE_CHECKING:
    from vision_service.engines.torch.cuda_engine import CudaEngine

TITLE = "InternViT-300M and its projector on one GPU, random weights"
COMPARED = """\
Tiles a second for batches of so many tiles, bfloat16. "PyTorch" is the model as it is written
(`intern_vit.py`, scaled_dot_product_attention), "ours" the engine's (`fused_vit.py` with the Triton
programs), "torch.compile" the model as it is written with compiled layers, in the mode "default";
these three take their tiles on the GPU and run under CUDA graphs. "Engine" is the whole engine,
from tiles in host memory to embeddings there: one batch after another, or a second one behind that
which computes, as it is under load. Medians. "Error" is the norm of the difference from the float32
model over the norm of its embeddings. Tiles a second at 26 tiles for comparison: 1,078 are the
floor (0.74 TFLOP a tile at the 798 TFLOP/s that a large matrix product reaches), 601 is the
whole model under torch.compile in its mode "max-autotune", 562 is vLLM 0.24."""
REACH = ">= 800"
REACHING = ("ours", "engine, two batches in flight")
RELEASED = CONFIGS / "InternVL2_5-8B"
REFERENCE_TILE_COUNT = 2
BATCHES_IN_FLIGHT = 2
Encode = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Bench:
    """What is measured, and where.

    Attributes:
        config: the tower's.
        device: where it runs; on the CPU without the engine and in float32.
        tile_counts: sizes of batches, ascending.
        repeat_count: measured batches of each size.
    """

    config: VisionConfig
    device: torch.device
    tile_counts: tuple[int, ...] = (1, 13, 26)
    repeat_count: int = 30

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.is_cuda else torch.float32

    def tiles(self, count: int) -> torch.Tensor:
        """Returns the same random tiles at each call, in host memory."""
        shape = (count, 3, self.config.tile_size, self.config.tile_size)
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@dataclass(frozen=True)
class Way:
    """One way to the embeddings.

    Attributes:
        name: its row in the table.
        encode: tiles in host memory -> embeddings.
        seconds: tiles in host memory -> the duration of each of several batches of them.
        tile_counts: the batch sizes that it is measured with.
    """

    name: str
    encode: Encode
    seconds: Callable[[torch.Tensor], list[float]]
    tile_counts: Sequence[int]


class WrittenModel:
    """uint8 tiles -> embeddings by the model as it is written; normalising takes four kernels."""

    def __init__(self, model: VisionModel, config: VisionConfig) -> None:
        self._model = model
        weight = model.vision_model.embeddings.patch_embedding.weight
        self._dtype = weight.dtype
        self._mean, self._std = (
            torch.tensor(values, device=weight.device).view(3, 1, 1)
            for values in (config.mean, config.std)
        )

    @torch.inference_mode()
    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        values = tiles.to(torch.float32).div_(255).sub_(self._mean).div_(self._std)
        embeddings: torch.Tensor = self._model(values.to(self._dtype))
        return embeddings


def measure(bench: Bench) -> Report:
    """Measures each way that the device has."""
    report = Report(
        title=TITLE,
        compared=COMPARED,
        columns=(
            "way",
            *(f"batch of {count}" for count in bench.tile_counts),
            f"ms for {bench.tile_counts[-1]}",
            "error",
            "reach",
        ),
    )
    exact = random_model(bench.config, bench.device)
    sample = bench.tiles(REFERENCE_TILE_COUNT)
    expected = WrittenModel(exact, bench.config)(sample.to(bench.device))
    for way in ways(bench, exact):
        print(f"measuring {way.name} ...", flush=True)
        error = relative_error(way.encode(sample), expected)
        _add(report, bench, way, error)
    return report


def _add(report: Report, bench: Bench, way: Way, error: float) -> None:
    seconds = {count: way.seconds(bench.tiles(count)) for count in way.tile_counts}
    medians = {count: statistics.median(values) for count, values in seconds.items()}
    speeds = [f"{n / medians[n]:.0f}" if n in medians else "-" for n in bench.tile_counts]
    largest = f"{medians[bench.tile_counts[-1]] * 1e3:.2f}"
    reach = REACH if way.name in REACHING else ""
    by_size = {f"batch of {count}": values for count, values in seconds.items()}
    report.add(way.name, [*speeds, largest, f"{error:.5f}", reach], by_size)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns the norm of the difference over the norm of what is expected."""
    difference = found.to(expected.device, expected.dtype) - expected
    return float(difference.norm() / expected.norm())


def random_model(config: VisionConfig, device: torch.device) -> VisionModel:
    """Returns a float32 model whose activations keep their size through the layers."""
    torch.manual_seed(0)
    with torch.device(device):
        model = VisionModel(config)
    for name, parameter in model.named_parameters():
        values = torch.randn_like(parameter)
        if name.endswith((".ls1", ".ls2")):
            values = 0.3 + 0.1 * values
        elif name.endswith(".bias"):
            values = 0.1 * values
        elif parameter.dim() == 1:
            values = 1 + 0.1 * values
        elif name.endswith(".weight"):
            values *= parameter[0].numel() ** -0.5
        parameter.data = values
    return model.eval().requires_grad_(False)


# The ways.


def ways(bench: Bench, exact: VisionModel) -> Iterator[Way]:
    """Yields the ways, each ready to run; the one that compiles for a while comes last."""
    yield _model_way(bench, "PyTorch", WrittenModel(_cast(bench, exact), bench.config))
    ours = our_model(bench, exact)
    yield _model_way(bench, "ours", ours)
    if bench.is_cuda:
        yield from _engine_ways(bench, ours)
        compiled = _model_way(bench, "torch.compile", _compiled(bench, exact))
        # It would compile for each size again.
        yield dataclasses.replace(compiled, tile_counts=bench.tile_counts[-1:])


def _cast(bench: Bench, exact: VisionModel) -> VisionModel:
    model = VisionModel(bench.config).to(bench.device, bench.dtype)
    model.load_state_dict(exact.state_dict())
    return model.eval().requires_grad_(False)


def our_model(bench: Bench, exact: VisionModel) -> FusedVisionModel:
    """Returns the engine's model with the weights of one in float32."""
    operations = TORCH_OPERATIONS
    if bench.is_cuda:
        from vision_service.engines.torch.triton_programs import OPERATIONS

        operations = OPERATIONS
    return FusedVisionModel(exact, bench.config, operations, bench.device, bench.dtype)


def _compiled(bench: Bench, exact: VisionModel) -> WrittenModel:
    model = _cast(bench, exact)
    layers = model.vision_model.encoder.layers
    for index, layer in enumerate(layers):
        compiled: Any = torch.compile(layer, dynamic=False)
        layers[index] = compiled
    return WrittenModel(model, bench.config)


def _model_way(bench: Bench, name: str, model: Encode) -> Way:
    def encode(tiles: torch.Tensor) -> torch.Tensor:
        return model(tiles.to(bench.device))

    def seconds(tiles: torch.Tensor) -> list[float]:
        run = partial(model, tiles.to(bench.device))
        measured = _replay_seconds if bench.is_cuda else _call_seconds
        return measured(run, bench.repeat_count)

    return Way(name, encode, seconds, bench.tile_counts)


def _engine_ways(bench: Bench, model: Encode) -> Iterator[Way]:
    from vision_service.engines.torch.cuda_engine import CudaEngine

    largest = bench.tile_counts[-1]
    engine = CudaEngine(
        model, bench.config, bytes(32), dtype=bench.dtype, max_batch_tile_count=largest
    )
    for name, in_flight_count in (
        ("engine, one batch at a time", 1),
        ("engine, two batches in flight", BATCHES_IN_FLIGHT),
    ):
        seconds = partial(_engine_seconds, engine, in_flight_count, bench.repeat_count)
        yield Way(name, engine.encode, seconds, bench.tile_counts)


# The clocks.


def _replay_seconds(run: Callable[[], object], repeat_count: int) -> list[float]:
    """Returns what each replay of a CUDA graph of the run takes, by the GPU's clock."""
    replay = _captured(run)
    for _ in range(3):
        replay()
    events = [(_timer(), _timer()) for _ in range(repeat_count)]
    for before, after in events:
        before.record()
        replay()
        after.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1e3 for before, after in events]


def _captured(run: Callable[[], object]) -> Callable[[], object]:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call] # torch leaves it untyped
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()  # compiles kernels and makes handles, which a capture must not do
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    return graph.replay


def _timer() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call] # torch leaves it untyped


def _call_seconds(run: Callable[[], object], repeat_count: int) -> list[float]:
    run()
    ends = [time.perf_counter()]
    for _ in range(repeat_count):
        run()
        ends.append(time.perf_counter())
    return _intervals(ends)


def _engine_seconds(
    engine: CudaEngine, in_flight_count: int, repeat_count: int, tiles: torch.Tensor
) -> list[float]:
    """Returns the time between one batch's embeddings and the next one's."""
    batches = [engine.submit([tiles]) for _ in range(in_flight_count)]
    ends = []
    for _ in range(1 + repeat_count):
        batches.pop(0).wait()
        ends.append(time.perf_counter())
        batches.append(engine.submit([tiles]))
    for batch in batches:
        batch.wait()
    return _intervals(ends)


def _intervals(ends: Sequence[float]) -> list[float]:
    return [after - before for before, after in zip(ends, ends[1:], strict=False)]


# The command line.


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table, and writes vision_cuda.md and vision_cuda.json."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.vision_cuda")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny tower, to try this program")
    options = parser.parse_args(arguments)
    torch.backends.cudnn.allow_tf32 = False  # the reference is float32
    load, _, _ = os.getloadavg()
    report = measure(bench_of(torch.device(options.device), tiny=options.tiny))
    command = shlex.join(["python", "-m", "tests.benchmarks.vision_cuda", *sys.argv[1:]])
    ReportBook(options.out, "vision_cuda", TITLE).put("Tiles a second", report, command, load)
    print(report.table())


def bench_of(device: torch.device, *, tiny: bool) -> Bench:
    """Returns the released tower's measurement, or one of a tiny tower."""
    config = VisionConfig.from_checkpoint(RELEASED)
    if not tiny:
        return Bench(config, device)
    small = dataclasses.replace(
        config,
        hidden_size=32,
        intermediate_size=64,
        layer_count=2,
        used_layer_count=2,
        head_count=2,
        patch_size=7,
        tile_size=56,
        image_size=56,
        output_size=24,
    )
    return Bench(small, device, tile_counts=(1, 2, 3), repeat_count=2)


if __name__ == "__main__":
    main()
