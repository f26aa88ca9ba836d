"""The training run: one device, a wall-clock budget, and always a checkpoint to go on from."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import set_forkserver_preload
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from pydantic_settings import CliApp, SettingsConfigDict
from torch.utils.data import DataLoader

from demo_training.batches import Batch, BatchShape, SampleStream
from demo_training.dialogues import MemoTokenizer
from demo_training.export import DEMO_SIZE, TINY_SIZE, write_description
from demo_training.objectives import Losses
from demo_training.samples import KIND_SHARES, Kind, Sample, Split, make_sample
from demo_training.trainer import CHECKPOINT, Trainer
from protos.process.settings import Options

TOKENIZER = Path(__file__).parent / "tokenizer"
SIZES = {"demo": DEMO_SIZE, "tiny": TINY_SIZE}
HELD_OUT_SEED = 900_000_000
HELD_OUT_COUNT = 6
# The dense losses are at their last weight from here on, as a share of the budget.
DENSE_SHARE = 2 / 3


class Settings(Options):
    """Options of a training run."""

    model_config = SettingsConfigDict(
        env_prefix="DEMO_TRAIN_",
        cli_prog_name="python -m demo_training.train",
    )

    out: Path
    """Folder that the run writes to."""
    resume: Path | None = None
    """Folder of an earlier run to go on from; default: random weights."""
    minutes: float = Field(default=9.0, gt=0)
    """Wall-clock budget, loading and compiling included."""
    size: Literal["demo", "tiny"] = "demo"
    """The model's size; tiny is for smoke tests."""
    tokenizer: Path = TOKENIZER
    """Folder of the tokenizer's files."""
    seed: int = Field(default=0, ge=0)
    """First seed of the training samples; give each run its own range."""
    workers: int = Field(default=15, ge=0)
    """Processes that render samples; 0 renders in the training process."""
    tiles: int = Field(default=96, ge=8)
    """Tiles of a batch."""
    rows: int = Field(default=28, ge=1)
    """Token rows of a batch."""
    row_length: int = Field(default=2048, ge=128)
    """Tokens of a row."""
    shares: dict[Kind, float] = dict(KIND_SHARES)
    """How often each kind of sample is drawn, as JSON."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Highest learning rate."""
    warmup_steps: int = Field(default=300, ge=1)
    """Steps over which the learning rate rises."""
    decay_share: float = Field(default=0.3, gt=0, le=1)
    """Share of the budget, at its end, over which the learning rate falls to 0."""
    dense_start: float = Field(default=1.0, ge=0)
    """Weight of the dense losses at the start."""
    dense_end: float = Field(default=0.0, ge=0)
    """Their weight from two thirds of the budget on."""
    report_seconds: float = Field(default=10.0, gt=0)
    """Time between two progress lines."""
    save_seconds: float = Field(default=60.0, gt=0)
    """Time between two evaluations, each with a checkpoint."""
    compiled: bool = True
    """Whether to compile the layers, on CUDA."""


@dataclass
class Clock:
    """The budget, and how much of it is gone."""

    seconds: float
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def share(self) -> float:
        """Share of the budget that is gone; above 1 once it is overdrawn."""
        return self.elapsed / self.seconds


class Progress:
    """What is printed: losses and speed every few seconds, scores with each checkpoint."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._reported = self._saved = clock.elapsed
        self._step_count = self._tile_count = self._sample_count = 0
        self._waited = 0.0

    def count(self, batch: Batch, waited: float) -> None:
        """Notes a step and for how many seconds it had waited for its batch."""
        self._step_count += 1
        self._tile_count += len(batch.tiles)
        self._sample_count += batch.sample_count
        self._waited += waited

    def report(self, losses: Losses) -> None:
        """Prints a line if it is time; only then is the device waited for."""
        if self._clock.elapsed < self._reported + self._settings.report_seconds:
            return
        parts = " ".join(f"{name} {value.item():.3f}" for name, value in losses._asdict().items())
        seconds = self._clock.elapsed - self._reported
        print(
            f"{self._clock.elapsed:5.0f} s  {self._step_count / seconds:5.1f} steps/s "
            f"{self._tile_count / seconds:6.0f} tiles/s {self._sample_count / seconds:6.0f} "
            f"samples/s  waited {100 * self._waited / seconds:3.0f} %  {parts}",
            flush=True,
        )
        self._reported = self._clock.elapsed
        self._step_count = self._tile_count = self._sample_count = 0
        self._waited = 0.0

    def is_time_to_save(self) -> bool:
        """Whether the next evaluation and checkpoint are due."""
        due = self._clock.elapsed >= self._saved + self._settings.save_seconds
        if due:
            self._saved = self._clock.elapsed
        return due


def learning_rate(settings: Settings, step_count: int, share: float) -> float:
    """Rises over the warm-up, stays, and falls to 0 over the last `decay_share` of the budget."""
    rise = min(1.0, (1 + step_count) / settings.warmup_steps)
    fall = min(1.0, max(0.0, 1 - share) / settings.decay_share)
    return settings.learning_rate * rise * fall


def dense_weight(settings: Settings, share: float) -> float:
    """Goes from `dense_start` to `dense_end` over the first DENSE_SHARE of the budget."""
    done = min(1.0, share / DENSE_SHARE)
    return settings.dense_start + done * (settings.dense_end - settings.dense_start)


def train(settings: Settings) -> None:
    """Trains until the budget is spent."""
    clock = Clock(60 * settings.minutes)
    description = settings.out / CHECKPOINT
    write_description(description, SIZES[settings.size], settings.tokenizer)
    # Both start to render now, while the model is made and compiled.
    batches = _load(_training_stream(settings, description), settings.workers)
    held_out = _load(_held_out_stream(settings, description), min(settings.workers, HELD_OUT_COUNT))
    trainer = _trainer(settings, description)
    print(f"{clock.elapsed:5.0f} s  ready", flush=True)
    progress, scored = Progress(settings, clock), list[Batch]()
    while clock.share < 1:
        asked = clock.elapsed
        batch = next(batches)
        progress.count(batch, clock.elapsed - asked)
        rate = learning_rate(settings, trainer.step_count, clock.share)
        progress.report(trainer.step(batch, rate, dense_weight(settings, clock.share)))
        if progress.is_time_to_save():
            scored = scored or list(held_out)
            _save(trainer, scored, settings.out)
    _save(trainer, scored or list(held_out), settings.out)
    print(f"{clock.elapsed:5.0f} s  {trainer.step_count} steps in all", flush=True)


def _trainer(settings: Settings, description: Path) -> Trainer:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = Trainer(description, device, settings.seed)
    if settings.resume is not None:
        trainer.load(settings.resume)
    if settings.compiled and device.type == "cuda":
        trainer.compile()
    return trainer


def _save(trainer: Trainer, held_out: list[Batch], out: Path) -> None:
    trainer.save(out)
    print(trainer.evaluate(held_out).table(), flush=True)


def _training_stream(settings: Settings, description: Path) -> SampleStream:
    make = functools.partial(draw_sample, shares=settings.shares, split="train")
    tokenizer = MemoTokenizer.from_checkpoint(description)
    return SampleStream(make, _shape(settings), tokenizer, settings.seed)


def _held_out_stream(settings: Settings, description: Path) -> SampleStream:
    make = functools.partial(draw_sample, shares=dict(KIND_SHARES), split="layouts")
    tokenizer = MemoTokenizer.from_checkpoint(description)
    return SampleStream(make, _shape(settings), tokenizer, HELD_OUT_SEED, HELD_OUT_COUNT)


def _shape(settings: Settings) -> BatchShape:
    return BatchShape(settings.tiles, settings.rows, settings.row_length)


def draw_sample(seed: int, *, shares: dict[Kind, float], split: Split) -> Sample:
    """Returns the sample of a seed, of a kind drawn by its share."""
    kinds, weights = zip(*shares.items(), strict=True)
    kind = random.Random(seed).choices(kinds, weights)[0]
    return make_sample(seed, kind=kind, split=split)


def _load(stream: SampleStream, workers: int) -> Iterator[Batch]:
    """Renders in worker processes, which start at once and work ahead."""
    set_forkserver_preload(["demo_training.train"])
    loader = DataLoader(
        stream,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        # Not forked: the parent has threads and a CUDA context by now.
        multiprocessing_context="forkserver" if workers else None,
    )
    return iter(loader)


def _as_it_is(batch: Any) -> Any:
    """The loader's own conversion would turn a batch's parts into lists."""
    return batch


def main() -> None:
    """Runs with the command line's settings."""
    train(CliApp.run(Settings))


if __name__ == "__main__":
    main()
