"""Whether the services of this machine share a GPU, told without what runs them."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

NVIDIA_DRIVER = "libcuda.so.1"
AMD_DEVICE = Path("/dev/kfd")
NO_DEVICES = ("", "-1")


def has_gpu() -> bool:
    """Says whether there is a driver for GPUs, and they are not hidden from us."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in NO_DEVICES:
        return False
    return AMD_DEVICE.exists() or _has_library(NVIDIA_DRIVER)


def _has_library(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
