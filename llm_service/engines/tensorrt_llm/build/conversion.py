"""The conversion: an original checkpoint's language model as a TensorRT-LLM checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import TextIO

import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.tensorrt_llm.build.config_file import config_document
from llm_service.engines.tensorrt_llm.build.layout import TargetTensor, rank_tensors, source_shapes
from llm_service.engines.tensorrt_llm.build.output_folder import output_folder
from llm_service.engines.tensorrt_llm.build.progress import Progress
from llm_service.engines.tensorrt_llm.build.quantities import in_bytes
from llm_service.engines.tensorrt_llm.build.source import SourceTensors
from llm_service.engines.tensorrt_llm.build.target import BuildError, Target
from llm_service.engines.tensorrt_llm.build.tensor_file import ITEM_BYTE_COUNT, write_tensor_file


def convert(checkpoint: Path, converted: Path, target: Target, stream: TextIO) -> None:
    """Writes config.json and one rank{i}.safetensors for each GPU, or nothing at all.

    Every file is written tensor by tensor and read some rows at a time, so that memory does not
    grow with the model.

    Args:
        checkpoint: folder of an original InternVL checkpoint.
        converted: folder to make; it appears when all files are complete.
        target: types and split.
        stream: where the progress is written.

    Raises:
        BuildError: the target does not fit the model, `converted` exists, a conversion to it runs
            or was cut off, the disk is too small, or a weight is too large for float16.
        CheckpointError: the checkpoint is not one that we serve.
    """
    config = LLMConfig.from_checkpoint(checkpoint)
    target.check(config)
    source = SourceTensors(checkpoint, source_shapes(config))
    layouts = [rank_tensors(config, target, rank) for rank in target.ranks]
    byte_count = sum(prod(tensor.shape) for tensors in layouts for tensor in tensors)
    byte_count *= ITEM_BYTE_COUNT
    with output_folder(converted, "--converted", "conversion") as folder:
        _check_disk(converted.parent, byte_count)
        progress = Progress(f"converting to {converted}", byte_count, stream)
        for index, tensors in enumerate(layouts):
            shapes = {tensor.name: tensor.shape for tensor in tensors}
            parts = _parts(tensors, source, getattr(torch, target.dtype), progress)
            write_tensor_file(folder / f"rank{index}.safetensors", shapes, target.dtype, parts)
        document = json.dumps(config_document(config, target), indent=2)
        (folder / "config.json").write_text(document + "\n", encoding="utf-8")


def _check_disk(folder: Path, byte_count: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < byte_count:
        raise BuildError(
            f"{folder} has {in_bytes(free)} free; the checkpoint takes {in_bytes(byte_count)}"
        )


def _parts(
    tensors: list[TargetTensor], source: SourceTensors, dtype: torch.dtype, progress: Progress
) -> Iterator[torch.Tensor]:
    """Yields the tensors' rows in order, in the target's type."""
    for tensor in tensors:
        for block in tensor.blocks:
            for rows in source.rows(block):
                yield _cast(tensor.name, rows, dtype)
        if tensor.padding_row_count:
            yield torch.zeros(tensor.padding_row_count, *tensor.shape[1:], dtype=dtype)
        progress.advance(prod(tensor.shape) * ITEM_BYTE_COUNT)


def _cast(name: str, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    cast = rows.to(dtype)
    if dtype is torch.float16:
        lowest, highest = torch.aminmax(cast)
        if not (lowest.isfinite() and highest.isfinite()):
            raise BuildError(
                f"{name} has weights beyond float16 ({rows.abs().max():g}): use bfloat16"
            )
    return cast
