"""Batches: samples as picture tiles and packed token rows, all of one fixed shape."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from demo_training.dialogues import IGNORED, Dialogue, Prefix, encode_dialogue
from demo_training.drawing import PATCH
from demo_training.export import MAX_TILE_COUNT
from demo_training.network import Rows
from demo_training.samples import Picture, Sample
from demo_training.scores import Label
from llm_service.tokenizer import Tokenizer
from vision_service.tiling import choose_grid, cut

CANVAS = 448  # pixels: the edge of a tile, and of most pictures
TOKENS_PER_TILE = (CANVAS // PATCH // 2) ** 2  # pixel shuffle folds 2 x 2 patches into one
# A picture goes into each of its units: a question before the picture makes a unit of its own.
SLOTS_PER_TOKEN = 2


@dataclass(frozen=True)
class BatchShape:
    """The fixed sizes of a batch, so that a compiled step never meets another.

    Attributes:
        tile_count: tiles; those that no picture needed are black.
        row_count: token rows.
        row_length: tokens of a row.
    """

    tile_count: int
    row_count: int
    row_length: int


@dataclass(frozen=True)
class Batch:
    """What one training step sees.

    Attributes:
        tiles: [tiles, 3, 448, 448] uint8.
        classes: [tiles, 32, 32] int16, what each patch shows, or IGNORED.
        colours: likewise, its colour.
        rows: the packed tokens.
        targets: [rows, length] int64, the token to be said next, or IGNORED.
        owners: [rows, length] int64, which of `labels` a target belongs to, or IGNORED.
        labels: of each turn.
        sample_count: samples in the batch.
    """

    tiles: torch.Tensor
    classes: torch.Tensor
    colours: torch.Tensor
    rows: Rows
    targets: torch.Tensor
    owners: torch.Tensor
    labels: list[Label]
    sample_count: int

    def to(self, device: torch.device) -> Batch:
        """Returns the batch on a device; from pinned memory the copy does not wait."""
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(moved, classes=moved.classes.long(), colours=moved.colours.long())

    def copy_(self, other: Batch) -> None:
        """Takes over another batch's tensors, in place."""
        own = (self.tiles, self.classes, self.colours, *self.rows, self.targets, self.owners)
        new = (other.tiles, other.classes, other.colours, *other.rows, other.targets, other.owners)
        for mine, its in zip(own, new, strict=True):
            mine.copy_(its, non_blocking=True)

    def pin_memory(self) -> Batch:
        """Returns the batch in pinned memory; the loader's thread calls this."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return replace(
            self,
            tiles=function(self.tiles),
            classes=function(self.classes),
            colours=function(self.colours),
            rows=Rows(*map(function, self.rows)),
            targets=function(self.targets),
            owners=function(self.owners),
        )


class BatchBuilder:
    """Fills one batch, sample by sample, until one does not fit."""

    def __init__(self, shape: BatchShape, tokenizer: Tokenizer) -> None:
        grid = (shape.row_count, shape.row_length)
        patches = (shape.tile_count, CANVAS // PATCH, CANVAS // PATCH)
        token_count = shape.tile_count * TOKENS_PER_TILE
        slot_count = SLOTS_PER_TOKEN * token_count
        self._shape = shape
        self._tokenizer = tokenizer
        self._tiles = np.zeros((shape.tile_count, 3, CANVAS, CANVAS), np.uint8)
        self._classes, self._colours = np.full((2, *patches), IGNORED, np.int16)
        self._token_ids, self._positions, self._units, self._dialogues = np.zeros((4, *grid), int)
        self._targets, self._owners = np.full((2, *grid), IGNORED)
        # Unused slots take any token to the one place behind all rows.
        self._sources = np.arange(slot_count) % token_count
        self._places = np.full(slot_count, shape.row_count * shape.row_length)
        self._labels: list[Label] = []
        self._used_lengths = [0] * shape.row_count
        self._used_tile_count = self._used_slot_count = 0
        self._unit_count = self._sample_count = 0

    def add(self, sample: Sample) -> bool:
        """Adds a sample; False, and nothing added, if it does not fit any more."""
        tiles = [_tiles(picture) for picture in sample.pictures]
        counts = [len(part) for part in tiles]
        if self._used_tile_count + sum(counts) > self._shape.tile_count:
            return False
        units: dict[Prefix, list[Dialogue]] = {}
        for turns in sample.dialogues:
            dialogue = encode_dialogue(self._tokenizer, turns, len(counts), sample.system)
            units.setdefault(dialogue.prefix, []).append(dialogue)
        placed = [self._add_unit(*unit, counts) for unit in units.items()]
        if not any(placed):
            return False
        for picture, part in zip(sample.pictures, tiles, strict=True):
            self._add_picture(picture, part)
        self._sample_count += 1
        return True

    def batch(self) -> Batch:
        """Returns the batch."""
        rows = (self._token_ids, self._positions, self._units, self._dialogues)
        return Batch(
            torch.from_numpy(self._tiles),
            torch.from_numpy(self._classes),
            torch.from_numpy(self._colours),
            Rows(*map(torch.from_numpy, (*rows, self._sources, self._places))),
            torch.from_numpy(self._targets),
            torch.from_numpy(self._owners),
            self._labels,
            self._sample_count,
        )

    def _add_picture(self, picture: Picture, tiles: npt.NDArray[np.uint8]) -> None:
        first = self._used_tile_count
        self._tiles[first : first + len(tiles)] = tiles
        if picture.classes is not None and picture.colours is not None:
            self._classes[first] = picture.classes
            self._colours[first] = picture.colours
        self._used_tile_count += len(tiles)

    def _add_unit(self, prefix: Prefix, dialogues: list[Dialogue], tile_counts: list[int]) -> bool:
        """Packs dialogues with one prefix into the first row that has room for all of them.

        Of a unit that is longer than a row, the last dialogues are left out.
        """
        slots = [count * TOKENS_PER_TILE for count in tile_counts]
        prefix_length = sum(slots) + sum(map(len, prefix))
        length = prefix_length + sum(len(dialogue.token_ids) for dialogue in dialogues)
        row = self._row_with_room(min(length, self._shape.row_length))
        if row is None or self._used_slot_count + sum(slots) > len(self._places):
            return False
        self._unit_count += 1
        self._add_prefix(row, prefix, slots)
        for number, dialogue in enumerate(dialogues, start=1):
            if self._used_lengths[row] + len(dialogue.token_ids) <= self._shape.row_length:
                self._add_dialogue(row, dialogue, number, prefix_length)
        return True

    def _row_with_room(self, length: int) -> int | None:
        for row, used in enumerate(self._used_lengths):
            if used + length <= self._shape.row_length:
                return row
        return None

    def _add_prefix(self, row: int, prefix: Prefix, slots: list[int]) -> None:
        start = end = self._used_lengths[row]
        source = self._used_tile_count * TOKENS_PER_TILE
        for token_ids, count in zip(prefix, slots, strict=True):
            self._token_ids[row, end : end + len(token_ids)] = token_ids
            end += len(token_ids)
            place = row * self._shape.row_length + end
            used = slice(self._used_slot_count, self._used_slot_count + count)
            self._places[used] = np.arange(place, place + count)
            self._sources[used] = np.arange(source, source + count)
            self._used_slot_count += count
            source += count
            end += count
        self._positions[row, start:end] = np.arange(end - start)
        self._units[row, start:end] = self._unit_count
        self._used_lengths[row] = end

    def _add_dialogue(self, row: int, dialogue: Dialogue, number: int, first_position: int) -> None:
        start, count = self._used_lengths[row], len(dialogue.token_ids)
        span = (row, slice(start, start + count))
        self._token_ids[span] = dialogue.token_ids
        self._positions[span] = np.arange(first_position, first_position + count)
        self._units[span] = self._unit_count
        self._dialogues[span] = number
        self._targets[span] = dialogue.targets
        owned = dialogue.owners != IGNORED
        self._owners[span][owned] = dialogue.owners[owned] + len(self._labels)
        self._labels += dialogue.labels
        self._used_lengths[row] += count


def _tiles(picture: Picture) -> npt.NDArray[np.uint8]:
    """Returns a picture's tiles as the vision service cuts them."""
    height, width, _ = picture.pixels.shape
    grid = choose_grid(width, height, MAX_TILE_COUNT, CANVAS)
    return cut(Image.fromarray(picture.pixels), grid, CANVAS)


@dataclass(frozen=True)
class SampleStream(IterableDataset[Batch]):
    """A stream of batches; each loader worker has its own share of the seeds.

    Attributes:
        make: a sample from a seed.
        shape: of every batch.
        tokenizer: of the model.
        first_seed: seeds count up from here.
        count: batches of all workers together; None is without end.
    """

    make: Callable[[int], Sample]
    shape: BatchShape
    tokenizer: Tokenizer
    first_seed: int
    count: int | None = None

    def __iter__(self) -> Iterator[Batch]:
        """Yields this worker's batches."""
        worker = get_worker_info()
        number, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        own_count = None if self.count is None else len(range(number, self.count, step))
        return itertools.islice(self._batches(self.first_seed + number, step), own_count)

    def _batches(self, first_seed: int, step: int) -> Iterator[Batch]:
        builder = BatchBuilder(self.shape, self.tokenizer)
        for seed in itertools.count(first_seed, step):
            sample = self.make(seed)
            if not builder.add(sample):
                yield builder.batch()
                builder = BatchBuilder(self.shape, self.tokenizer)
                builder.add(sample)
