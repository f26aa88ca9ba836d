"""The folder that a step makes: it takes its name once everything in it is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_service.engines.tensorrt_llm.build.target import BuildError


@contextmanager
def output_folder(folder: Path, option: str, work: str) -> Iterator[Path]:
    """Yields a new folder beside `folder` that takes its name when the block ends well.

    When it does not, the new folder is removed; where the process was killed it stays, and is named
    to whoever tries again.

    Args:
        folder: where the output is to appear.
        option: that names `folder`, e.g. "--output".
        work: what the block does, e.g. "build".

    Raises:
        BuildError: `folder` exists, or work on it runs or was cut off.
    """
    if folder.exists():
        raise BuildError(f"{folder} exists; remove it or choose another {option}")
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    if unfinished.exists():
        raise BuildError(f"{unfinished} is of a {work} that still runs or was cut off")
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        os.rename(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
