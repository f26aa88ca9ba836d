"""The shapes of the released models, for benchmarks that run them with random weights."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from protos.process.settings import GIB
from tests.random_checkpoint import (
    Family,
    write_random_checkpoint,
    write_random_weights,
    write_tokenizer,
)
from tests.real_tokenizers import FOLDER as TOKENIZERS
from tests.released_models.facts import served_models
from tests.released_models.folder import llm_config

CONFIGS = Path(__file__).parents[1] / "data" / "configs"
FAMILIES: Mapping[str, Family] = {"8B": "internlm2", "1B": "qwen2", "3.5-8B": "qwen3"}
# Qwen3's tokenizer is Qwen2.5's with a few added tokens more.
TOKENIZER_NAMES: Mapping[Family, str] = {
    "internlm2": "internlm2_5",
    "qwen2": "qwen2_5",
    "qwen3": "qwen2_5",
}
SHARED_MEMORY = Path("/dev/shm")
# The largest checkpoint has 16 GiB, and the processes that read it need room as well.
LEAST_SHARED_MEMORY = 20 * GIB


def released_config(size: str) -> dict[str, Any]:
    """Returns the config.json of InternVL2.5 in a size, e.g. "1B", or of InternVL3.5-8B."""
    if size == "3.5-8B":  # the same tower
        return {
            **released_config("8B"),
            "llm_config": llm_config(served_models()["InternVL3_5-8B"]),
        }
    text = (CONFIGS / f"InternVL2_5-{size}" / "config.json").read_text(encoding="utf-8")
    config: dict[str, Any] = json.loads(text)
    return config


def write_shape(folder: Path, size: str, *, device: str, tiny: bool) -> None:
    """Writes a checkpoint of a released shape unless the folder holds it already.

    Args:
        folder: where to.
        size: "8B", "1B" or "3.5-8B".
        device: draws the weights; its memory is free again afterwards.
        tiny: write a tiny checkpoint of the same architecture with the same tokenizer instead.
    """
    if (folder / "config.json").is_file():  # written last
        return
    family = FAMILIES[size]
    tokenizer = TOKENIZERS / TOKENIZER_NAMES[family]
    if tiny:
        write_random_checkpoint(folder, family=family, tokenizer=tokenizer)
    else:
        write_tokenizer(folder, tokenizer)
        write_random_weights(folder, released_config(size), device=device)
    torch.cuda.empty_cache()


@contextmanager
def open_shape(kept: Path | None, size: str, device: str, tiny: bool) -> Iterator[Path]:
    """Yields the folder of a shape's checkpoint, which is removed afterwards if not kept.

    Args:
        kept: keep it here, and use what is here already.
        size, device, tiny: as for write_shape.
    """
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as temporary:
        folder = (kept or Path(temporary)) / f"random-{size}"
        started = time.perf_counter()
        write_shape(folder, size, device=device, tiny=tiny)
        print(f"{size} checkpoint: {time.perf_counter() - started:.1f} s, {folder}", flush=True)
        yield folder


def _fast_folder() -> Path | None:
    """Returns where files are memory, if there is enough; None stands for Python's choice."""
    has_room = (
        SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > LEAST_SHARED_MEMORY
    )
    return SHARED_MEMORY if has_room else None
