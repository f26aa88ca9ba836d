"""A safetensors file that is written from front to back, so that no tensor is held whole.

The format: the header's length as 8 little-endian bytes, the header as JSON, then the tensors'
bytes, row-major and without gaps. (safetensors' own writers want all tensors in memory.)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from math import prod
from pathlib import Path

import torch

from llm_service.engines.tensorrt_llm.build.target import Dtype

TYPE_NAMES: dict[Dtype, str] = {"bfloat16": "BF16", "float16": "F16"}
ITEM_BYTE_COUNT = 2
ALIGNMENT = 8


def write_tensor_file(
    path: Path,
    shapes: dict[str, tuple[int, ...]],
    dtype: Dtype,
    parts: Iterable[torch.Tensor],
) -> None:
    """Writes a file and forces it to the disk.

    Args:
        path: the file, which must not exist.
        shapes: the tensors in the order of their bytes.
        dtype: of all of them.
        parts: their rows in the same order, cut anywhere between rows; of `dtype`.
    """
    header = _header(shapes, TYPE_NAMES[dtype])
    with path.open("xb") as file:
        file.write(header)
        for part in parts:
            # bfloat16 is no type of numpy's: its bytes are.
            file.write(part.contiguous().view(torch.uint8).numpy().data)
        expected = len(header) + sum(map(prod, shapes.values())) * ITEM_BYTE_COUNT
        assert file.tell() == expected, f"{path.name}: {file.tell()} bytes, not {expected}"
        file.flush()
        os.fsync(file.fileno())


def _header(shapes: dict[str, tuple[int, ...]], type_name: str) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + prod(shape) * ITEM_BYTE_COUNT
        entries[name] = {"dtype": type_name, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
