"""Tensors between host and device: on CUDA through pinned memory, and without waiting."""

from __future__ import annotations

from collections.abc import Sequence

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
    """Returns memory on the host that holds the tensor once the device has come so far."""
    if not tensor.is_cuda:
        return tensor
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)
