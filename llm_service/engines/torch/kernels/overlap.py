"""Launches that begin before those before them have ended: programmatic dependent launch."""

from __future__ import annotations

import torch

# The first GPUs with it: Hopper.
OVERLAPPING_CAPABILITY = (9, 0)


def can_overlap() -> bool:
    """Returns whether there is a GPU whose launches may overlap."""
    has_gpu = torch.cuda.is_available()
    return has_gpu and torch.cuda.get_device_capability() >= OVERLAPPING_CAPABILITY


def launch_options(*, overlaps: bool) -> dict[str, bool]:
    """Returns what a Triton program is launched with, which has an argument `overlaps`."""
    return {"overlaps": overlaps, "launch_pdl": overlaps}
