"""The task's functions: a question's picture, and whether the answer names what is in it."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image


def doc_to_visual(doc: dict[str, str]) -> list[Image.Image]:
    return [Image.open(Path(os.environ["INTERNVL_PICTURES"]) / doc["picture"]).convert("RGB")]


def process_results(doc: dict[str, str], results: list[str]) -> dict[str, float]:
    return {"is_named": float(doc["answer"] in results[0])}
