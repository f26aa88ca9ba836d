"""The original checkpoint's tensors, checked as a whole, then read some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from llm_service.checkpoint import require_tensors
from llm_service.decoders.family import ROOT
from llm_service.engines.tensorrt_llm.build.layout import Block
from protos.checkpoint.folder import checked_folder
from protos.checkpoint.section import CheckpointError
from protos.checkpoint.tensor_heads import require_shapes

# 8 MiB of bfloat16: more in one read was not faster.
READ_VALUE_COUNT = 4 * 1024**2

Shape = tuple[int, ...]


class SourceTensors:
    """The tensors of the language model in a checkpoint's files."""

    def __init__(self, checkpoint: Path, shapes: dict[str, Shape]) -> None:
        """Reads the files' headers.

        Raises:
            CheckpointError: a tensor is missing, unknown, of another shape than `shapes` says or
                not of a float type, or a file is missing or damaged.
        """
        self._file_of = checked_folder(checkpoint, (ROOT,))
        require_tensors(checkpoint, self._file_of.keys(), shapes.keys())
        require_shapes(self._file_of, shapes)

    def rows(self, block: Block) -> Iterator[torch.Tensor]:
        """Yields a block's rows in order, at most READ_VALUE_COUNT numbers at a time.

        The file is opened again for each read, so that mapped memory does not add up.
        """
        step = max(1, READ_VALUE_COUNT // len(block.columns))
        for first in range(block.rows.start, block.rows.stop, step):
            last = min(first + step, block.rows.stop)
            with _opened(self._file_of[block.source]) as file:
                source = file.get_slice(block.source)
                if len(source.get_shape()) == 1:
                    yield source[first:last]
                else:
                    yield source[first:last, block.columns.start : block.columns.stop]


def _opened(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
