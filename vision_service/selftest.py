"""The self-test of an engine: whether its embeddings are those of the torch engine in float32.

`python -m vision_service.selftest` takes the vision service's options. The torch engine encodes
tiles of the same checkpoint one by one; then the engine that the options name encodes them in
batches of several sizes, and every row of its embeddings is compared. Types round differently, so
equal is what is close enough.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from pydantic_settings import SettingsConfigDict
from torch.nn import functional

from protos.checkpoint.section import CheckpointError
from protos.process import logs
from protos.process.settings import read_settings
from vision_service.checkpoint import VisionConfig
from vision_service.engines.base import EngineStartError, VisionEngine
from vision_service.engines.create import create_engine, run_tile_counts
from vision_service.settings import Settings, TensorrtOptions

COMMON_TILE_COUNTS = (1, 2, 13)  # an image of one tile, two of them, one of the usual cap
RUN_COUNT = 3
COLOUR_COUNT = 4  # along each edge of a tile
NOISE_SHARE = 0.25


class SelftestSettings(Settings):
    """Options of the vision service, and the self-test's own.

    The limits leave room for bfloat16 and none for a mistake. In bfloat16 the torch engine's own
    rows have cosines of at least 0.9998 and errors of at most 0.009, with the toy model's tower and
    with random ones of 2 and 24 layers. Without the last of 24 layers it is 0.993 and 0.106; two
    neighbouring rows that are swapped have 0.97.
    """

    model_config = SettingsConfigDict(cli_prog_name="python -m vision_service.selftest")

    reference_device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the torch engine that the other one is compared with."""
    tile_counts: tuple[PositiveInt, ...] = ()
    """Tiles of each batch that is compared, as 1,2,13. Default: these, those that the engine's runs
    are made for (a plan's profile or the largest batch), and one more, which a plan splits."""
    least_cosine: float = Field(default=0.995, ge=-1, le=1)
    """Least cosine between a row and the reference's."""
    largest_error: float = Field(default=0.05, ge=0)
    """Largest norm of a batch's difference from the reference, relative to the reference's."""

    @property
    def reference(self) -> Settings:
        """The options of the torch engine."""
        torch = self.torch.model_copy(update={"device": self.reference_device, "dtype": "float32"})
        return self.model_copy(
            update={
                "engine": "torch",
                "torch": torch,
                "tensorrt": TensorrtOptions(),
                "max_batch_tile_count": 1,
            }
        )


@dataclass(frozen=True)
class Comparison:
    """How the embeddings of a batch compare with the reference's.

    Attributes:
        tile_count: the batch's.
        least_cosine: of a row with the reference's; NaN when one of the values is NaN.
        mean_cosine: over all rows.
        error: norm of the difference over norm of the reference.
        seconds: from tiles to embeddings in host memory, the median of RUN_COUNT runs.
    """

    tile_count: int
    least_cosine: float
    mean_cosine: float
    error: float
    seconds: float

    def shortfalls(self, settings: SelftestSettings) -> Iterator[str]:
        """Yields a sentence for each limit that the batch misses."""
        batch = f"{self.tile_count} tile(s) have"
        # Not "<": a comparison with NaN is false, and NaN is a shortfall, too.
        if not self.least_cosine >= settings.least_cosine:
            limit = f"less than --least-cosine {settings.least_cosine}"
            yield f"{batch} a row of cosine {self.least_cosine:.5f}, {limit}"
        if not self.error <= settings.largest_error:
            limit = f"more than --largest-error {settings.largest_error}"
            yield f"{batch} an error of {self.error:.5f}, {limit}"


def main() -> None:
    """Compares, and says what came out; exit status 1 when the engine fails or cannot start."""
    settings = read_settings(SelftestSettings)
    logs.configure("warning", settings.log_format)
    try:
        comparisons = compare(settings)
    # TensorRT refuses a run, or a device is full or lost, with a RuntimeError.
    except (CheckpointError, EngineStartError, OSError, RuntimeError) as error:
        sys.exit(str(error))
    if missed := [text for found in comparisons for text in found.shortfalls(settings)]:
        sys.exit("\n".join(f"FAILED: {text}" for text in missed))
    sys.stdout.write("passed\n")


def compare(settings: SelftestSettings) -> list[Comparison]:
    """Compares the settings' engine with the torch engine, and prints a line for each batch.

    Raises:
        CheckpointError: the checkpoint is not one that we serve.
        EngineStartError: an engine cannot start here.
        RuntimeError: an engine failed.
    """
    config = VisionConfig.from_checkpoint(settings.checkpoint)
    tile_counts = batch_sizes(settings)
    tiles = make_tiles(max(tile_counts), config.tile_size)
    expected = encode_reference(settings, config, tiles)
    # The other engine does not take its memory from PyTorch.
    gc.collect()
    torch.cuda.empty_cache()
    engine = create_engine(settings, config)
    comparisons = []
    for count in tile_counts:
        comparisons.append(compare_batch(engine, tiles[:count], expected[:count]))
        _report(settings.engine, comparisons[-1])
    return comparisons


def batch_sizes(settings: SelftestSettings) -> list[int]:
    """Returns the tile counts to compare, ascending.

    Raises:
        EngineStartError: they are those of a plan, and there is none.
    """
    if settings.tile_counts:
        return sorted(set(settings.tile_counts))
    own = run_tile_counts(settings)
    return sorted({*COMMON_TILE_COUNTS, *own, max(own) + 1})


def make_tiles(count: int, edge: int) -> torch.Tensor:
    """Returns tiles that all differ: colours that change slowly, under noise.

    With noise alone all places look the same: a wrong mean or deviation of the colours hardly shows
    (in a random tower of the 300M's shape a row's cosine is 0.993, here it is 0.92). Without noise
    neighbours look the same: two swapped rows hardly show (0.9994, here 0.93).

    Args:
        count: how many; the first ones are always the same.
        edge: of a tile, in pixels.

    Returns:
        [count, 3, edge, edge] uint8.
    """
    tiles = torch.empty(count, 3, edge, edge, dtype=torch.uint8)
    for index, tile in enumerate(tiles):
        generator = torch.Generator().manual_seed(index)
        colours = torch.rand(1, 3, COLOUR_COUNT, COLOUR_COUNT, generator=generator)
        (slow,) = functional.interpolate(colours, size=(edge, edge), mode="bilinear")
        noise = torch.rand(3, edge, edge, generator=generator)
        tile.copy_(255 * slow.lerp(noise, NOISE_SHARE))
    return tiles


def encode_reference(
    settings: SelftestSettings, config: VisionConfig, tiles: torch.Tensor
) -> torch.Tensor:
    """Returns the torch engine's [n, tokens_per_tile, hidden] float32; the engine ends with it.

    It encodes one tile at a time: that takes the least memory, and no tile can affect another.
    """
    engine = create_engine(settings.reference, config)
    return torch.cat([engine.encode(tile) for tile in torch.split(tiles, 1)])


def compare_batch(engine: VisionEngine, tiles: torch.Tensor, expected: torch.Tensor) -> Comparison:
    """Encodes a batch, once to warm and then RUN_COUNT times, of which the last is compared.

    Args:
        engine: that is compared.
        tiles: [n, 3, tile_size, tile_size] uint8.
        expected: [n, tokens_per_tile, hidden] float32.
    """
    rows = engine.encode(tiles)
    seconds = []
    for _ in range(RUN_COUNT):
        started = time.perf_counter()
        rows = engine.encode(tiles)
        seconds.append(time.perf_counter() - started)
    rows = rows.float()
    cosines = functional.cosine_similarity(rows, expected, dim=-1)  # [n, tokens_per_tile]
    error = (rows - expected).norm() / expected.norm()
    return Comparison(
        len(tiles),
        cosines.min().item(),
        cosines.mean().item(),
        error.item(),
        statistics.median(seconds),
    )


def _report(name: str, found: Comparison) -> None:
    sys.stdout.write(
        f"{name}: {found.tile_count:2} tile(s), cosine {found.least_cosine:.5f} at least and "
        f"{found.mean_cosine:.5f} on average, error {found.error:.5f}, "
        f"{1000 * found.seconds:.1f} ms, {found.tile_count / found.seconds:.1f} tiles/s\n"
    )


if __name__ == "__main__":
    main()
