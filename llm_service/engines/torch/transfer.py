"""Tensors between host and device: on CUDA through pinned memory, and without waiting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Returns the tensor on the device; the device's stream waits for it, the host does not."""
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def uploaded(
    values: Sequence[int] | Sequence[float], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Returns the values as a tensor [N] on the device."""
    return upload(torch.tensor(values, dtype=dtype), device)


def download(tensor: torch.Tensor) -> torch.Tensor:
    """Returns memory on the host that holds the tensor once the device has come so far.

    What the tensor holds later makes no difference to it.
    """
    if not tensor.is_cuda:
        return tensor.clone()
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)


class RowsUpload:
    """Rows that are copied again and again, from page-locked memory that they are written into.

    There are two places for them: one is written while the device still copies the other.
    """

    def __init__(self, destination: torch.Tensor) -> None:
        """Takes the rows on the device, [N, ...]."""
        self._destination = destination
        self._turns = [_Turn(destination), _Turn(destination)]

    def begin(self) -> np.ndarray[Any, np.dtype[Any]]:
        """Returns where to write the next rows, [N, ...]; what is there is of two copies before."""
        self._turns.reverse()
        return self._turns[0].wait()

    def copy(self, count: int) -> None:
        """Copies so many of the rows that have been written, and does not wait."""
        self._turns[0].copy(self._destination, count)


class _Turn:
    """One of the places of a RowsUpload."""

    def __init__(self, destination: torch.Tensor) -> None:
        shape, dtype = destination.shape, destination.dtype
        self._rows = torch.zeros(shape, dtype=dtype, pin_memory=destination.is_cuda)
        self._array = self._rows.numpy()
        self._has_copied: torch.cuda.Event | None = None

    def wait(self) -> np.ndarray[Any, np.dtype[Any]]:
        if self._has_copied is not None:
            self._has_copied.synchronize()
        return self._array

    def copy(self, destination: torch.Tensor, count: int) -> None:
        destination[:count].copy_(self._rows[:count], non_blocking=True)
        if destination.is_cuda:
            self._has_copied = torch.cuda.current_stream().record_event(self._has_copied)


class LargeUpload:
    """Copies megabytes, mostly from page-locked memory, while the device works on.

    From ordinary memory a copy makes the host wait for the stream that it is in, so it gets one of
    its own.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # PyTorch's

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the tensor on the device, for use in the current stream."""
        if self._stream is None:
            return tensor
        with torch.cuda.stream(self._stream):
            copy = tensor.to(self._device, non_blocking=True)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        copy.record_stream(current)
        return copy
