"""Blocks of the KV cache on their way to host memory and back, beside the device's other work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from llm_service.engines.torch.transfer import uploaded
from protos.process.settings import MIB

# Of the device's memory, for each direction: a picture of 13 tiles in the 8B's shape has 420 MiB.
STAGING_BYTE_COUNT = 512 * MIB


@dataclass(frozen=True)
class Moment:
    """A point in a stream of the device: all that was launched there before is done."""

    _event: torch.cuda.Event | None

    @classmethod
    def now(cls, device: torch.device) -> Moment:
        """Returns the end of what the current stream has so far."""
        is_cuda = device.type == "cuda"
        return cls(torch.cuda.current_stream(device).record_event() if is_cuda else None)

    @property
    def has_come(self) -> bool:
        """Whether the device has come so far."""
        if self._event is None:
            return True
        return bool(self._event.query())  # type: ignore[no-untyped-call] # PyTorch's

    def hold(self) -> None:
        """Lets the current stream go on only afterwards; the host does not wait."""
        if self._event is not None:
            self._event.wait()


def staged_block_count(slot_count: int, block_byte_count: int) -> int:
    """Returns how many blocks one direction has room for on the device."""
    return min(slot_count, max(1, STAGING_BYTE_COUNT // block_byte_count))


class BlockCopies:
    """Copies between blocks of the KV cache and slots of host memory, each on a stream of its own.

    A block lies in many pieces on the device, and in one in its slot. On its way it is staged on
    the device, so that the bus sees large copies alone: what goes out is gathered in the stream of
    the steps, and so may be overwritten by the next one; what comes in is scattered in the copies'
    stream, and steps go on meanwhile.
    """

    def __init__(self, kv_cache: torch.Tensor, memory: torch.Tensor) -> None:
        """Takes the cache and what the slots are made of.

        Args:
            kv_cache: [layers, 2, blocks, block_size, kv_heads, head_dim].
            memory: [bytes] uint8 on the host, whole slots; page-locked if the cache is on a GPU.
        """
        layer_count, _, block_count = kv_cache.shape[:3]
        self._device = kv_cache.device
        # [blocks, pieces, words] and [slots, pieces, words].
        self._blocks = _words(kv_cache.view(2 * layer_count, block_count, -1)).transpose(0, 1)
        self._slots = memory.view(self._blocks.dtype).view(-1, *self._blocks.shape[1:])
        self.slot_count = len(self._slots)
        staged_count = staged_block_count(self.slot_count, self._slots[0].nbytes)
        shape = staged_count, *self._blocks.shape[1:]
        self._outgoing, self._incoming = (self._blocks.new_empty(shape) for _ in range(2))
        self._out_stream, self._in_stream = (_side_stream(self._device) for _ in range(2))
        self._next_place = 0
        # When the latest copy of each is done.
        self._place_moments = [Moment(None)] * staged_count
        self._slot_moments = [Moment(None)] * self.slot_count

    def save(self, blocks: Sequence[int], slots: Sequence[int]) -> None:
        """Copies blocks to slots, as they are after the steps that have been launched."""
        pairs = sorted(zip(slots, blocks, strict=True))
        while pairs:
            place = self._next_place
            part, pairs = _divided(pairs, len(self._outgoing) - place)
            self._save(part, range(place, place + len(part)))
            self._next_place = (place + len(part)) % len(self._outgoing)

    def load(self, slots: Sequence[int], blocks: Sequence[int]) -> Moment:
        """Copies slots to blocks; returns when they are there.

        Steps that have been launched may still use the blocks.
        """
        launched = Moment.now(self._device)
        with _in(self._in_stream):
            _hold(self._slot_moments[slot] for slot in slots)
            pairs = sorted(zip(slots, blocks, strict=True))
            while pairs:
                part, pairs = _divided(pairs, len(self._incoming))
                for first, slot, count in _runs([slot for slot, _ in part]):
                    staged = self._incoming[first : first + count]
                    staged.copy_(self._slots[slot : slot + count], non_blocking=True)
                launched.hold()
                self._blocks.index_copy_(0, self._index(part), self._incoming[: len(part)])
            arrival = Moment.now(self._device)
        for slot in slots:
            self._slot_moments[slot] = arrival
        return arrival

    def _save(self, pairs: Sequence[tuple[int, int]], places: range) -> None:
        _hold(self._place_moments[place] for place in places)
        staged = self._outgoing[places.start : places.stop]
        torch.index_select(self._blocks, 0, self._index(pairs), out=staged)
        gathered = Moment.now(self._device)
        with _in(self._out_stream):
            _hold([gathered, *(self._slot_moments[slot] for slot, _ in pairs)])
            for first, slot, count in _runs([slot for slot, _ in pairs]):
                part = staged[first : first + count]
                self._slots[slot : slot + count].copy_(part, non_blocking=True)
            saved = Moment.now(self._device)
        for place, (slot, _) in zip(places, pairs, strict=True):
            self._place_moments[place] = self._slot_moments[slot] = saved

    def _index(self, pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
        return uploaded([block for _, block in pairs], torch.int64, self._device)


def _words(values: torch.Tensor) -> torch.Tensor:
    """Returns values as words of 8 bytes, of which a GPU copies more at a time, where they fit."""
    row_byte_count = values.shape[-1] * values.itemsize
    return values if row_byte_count % torch.int64.itemsize else values.view(torch.int64)


def _side_stream(device: torch.device) -> torch.cuda.Stream | None:
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # PyTorch's


def _in(stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    return nullcontext() if stream is None else torch.cuda.stream(stream)


def _hold(moments: Iterable[Moment]) -> None:
    for moment in set(moments):
        if not moment.has_come:
            moment.hold()


def _divided(
    pairs: list[tuple[int, int]], count: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    return pairs[:count], pairs[count:]


def _runs(slots: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yields where each run of neighbours begins, its first slot, and how many they are."""
    first = 0
    for index in range(1, len(slots) + 1):
        if index == len(slots) or slots[index] != slots[index - 1] + 1:
            yield first, slots[first], index - first
            first = index
