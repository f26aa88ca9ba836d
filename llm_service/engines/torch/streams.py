"""The CUDA stream of an engine: its kernels go before those of others on the same GPU."""

from __future__ import annotations

import torch

# A kernel's blocks start before those of a larger number that wait, where one process has both.
PRIORITY = -1


def engine_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Returns a stream for a decoder's steps; None where the device has none.

    The steps of a decoder are many short kernels. Behind a vision tower's long ones each of them
    would wait.
    """
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device, priority=PRIORITY)  # type: ignore[no-untyped-call] # PyTorch's


def current_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Returns the stream that this thread's work is in; None where the device has none."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


def capture_stream() -> torch.cuda.Stream | None:
    """Returns the stream to record graphs in, so that they get its priority.

    It is this thread's; None, which lets PyTorch choose, where that is the default one, in which
    nothing can be recorded.
    """
    current = torch.cuda.current_stream()
    return None if current == torch.cuda.default_stream() else current


def use_stream(stream: torch.cuda.Stream | None) -> None:
    """Puts all further work of this thread into a stream, if there is one."""
    if stream is not None:
        torch.cuda.set_stream(stream)
