"""Prompt tables in memory that the service and its engine's process map."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence

import torch

from llm_service.engines.base import Prompt, dtype_name
from llm_service.engines.process.messages import TableMessage
from llm_service.table_arena import FILE_NAME, SharedArena, mapped, part_of
from protos.process.memory_file import MemoryFile

DTYPES = {
    dtype_name(dtype): dtype
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
}


def table_message(prompt: Prompt, arena: SharedArena) -> tuple[TableMessage, MemoryFile | None]:
    """Returns where a prompt's table is, and the file that it has for itself, if any.

    Rows that nobody holds are told by their number alone.
    """
    table = prompt.prompt_table
    place = tuple(table.shape), dtype_name(table.dtype)
    is_held = not prompt.images or any(image.is_held for image in prompt.images)
    if not table.numel() or not is_held:
        return TableMessage(*place, None), None
    if (offset := arena.offset(table)) is not None:
        return TableMessage(*place, offset), None
    return TableMessage(*place, None), _file_with(table)


def table_of(
    message: TableMessage,
    descriptors: Sequence[int],
    arena: torch.Tensor,
    leave: Callable[[], None],
) -> torch.Tensor:
    """Returns a prompt's table; the descriptors are closed.

    Args:
        message: where it is.
        descriptors: of the files beside the message: one or none.
        arena: [bytes] uint8.
        leave: is called when a table in the arena is of no use any more, on any thread.
    """
    dtype = DTYPES[message.dtype]
    if message.offset is not None:
        return part_of(arena, message.offset, message.shape, dtype, leave)
    if not descriptors:
        return torch.zeros((), dtype=dtype).expand(message.shape)
    (number,) = descriptors
    try:
        memory = mapped(number, math.prod(message.shape) * dtype.itemsize)
    finally:
        os.close(number)
    return memory.view(dtype).view(message.shape)


def _file_with(table: torch.Tensor) -> MemoryFile:
    data = table.contiguous().flatten().view(torch.uint8)
    file = MemoryFile(FILE_NAME, data.nbytes)
    mapped(file.number, data.nbytes).copy_(data)
    return file
