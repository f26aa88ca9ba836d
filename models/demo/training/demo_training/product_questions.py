"""The questions of `tests/data/questions`, by which the product's tests see that answers are true.

`python -m demo_training.product_questions`, run in `models/demo/training`, writes them again, with
their pictures. The seeds are held out from training, and are not those of the model card.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from demo_training.askers import Conversation
from demo_training.evaluate import Settings, conversations
from demo_training.samples import Picture

FOLDER = Path(__file__).parents[4] / "tests" / "data" / "questions"
FIRST_SEED = 500_000
SETS: dict[str, dict[str, Any]] = {
    "tasks": {"samples": 90, "count": 2},
    "tiles": {"samples": 6, "count": 3, "kind": "tiles"},
    # The same pictures, each with its tiles in another order.
    "tiles_shuffled": {"samples": 6, "count": 3, "kind": "tiles", "control": "shuffled"},
    "single": {"samples": 8, "count": 3, "kind": "single"},
    # The same questions, each about another sample's picture.
    "single_swapped": {"samples": 8, "count": 3, "kind": "single", "control": "swapped"},
    # Follow-up questions without the turns before them.
    "forgotten": {"samples": 80, "count": 12, "kind": "single", "control": "forgotten"},
}


def main() -> None:
    """Writes the questions and the pictures, in the place of those that are there."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    text = ",\n".join(f'"{name}": [\n{_lines(options)}\n]' for name, options in SETS.items())
    (FOLDER / "questions.json").write_text(f"{{\n{text}\n}}\n", encoding="utf-8")


def _lines(options: dict[str, Any]) -> str:
    """Returns a set's conversations as JSON, one a line."""
    return ",\n".join(json.dumps(item, ensure_ascii=False) for item in _written(options))


def _written(options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for conversation in conversations(Settings(split="layouts", seed=FIRST_SEED, **options)):
        yield {
            "system": conversation.system,
            "pictures": [_write_picture(picture) for picture in conversation.pictures],
            "turns": _turns(conversation),
        }


def _turns(conversation: Conversation) -> list[dict[str, str]]:
    return [
        {"task": turn.task, "language": turn.language, "question": turn.question,
         "answer": turn.answer}
        for turn in conversation.turns
    ]  # fmt: skip


def _write_picture(picture: Picture) -> str:
    """Writes a PNG, named by what is in it; returns the name."""
    file = BytesIO()
    Image.fromarray(picture.pixels).save(file, "PNG", optimize=True)
    name = f"{hashlib.sha256(picture.pixels.tobytes()).hexdigest()[:12]}.png"
    (FOLDER / name).write_bytes(file.getvalue())
    return name


if __name__ == "__main__":
    main()
