"""The example pictures of `models/demo/pictures`, drawn from seeds that training held out.

`python -m demo_training.pictures` writes them again, pixel for pixel.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from demo_training.samples import Kind, make_sample

FOLDER = Path(__file__).parents[2] / "pictures"
# Which sample's pictures get which names.
EXAMPLES: dict[tuple[Kind, int], tuple[str, ...]] = {
    ("single", 7011): ("scene",),
    ("text", 7005): ("sign",),
    ("pair", 7009): ("pair-1", "pair-2"),
    ("tiles", 7004): ("large",),
    ("video", 7001): tuple(f"frame-{number}" for number in range(1, 7)),
}


def main() -> None:
    """Writes the pictures as PNG files."""
    FOLDER.mkdir(exist_ok=True)
    for (kind, seed), names in EXAMPLES.items():
        sample = make_sample(seed, kind=kind, split="layouts")
        for name, picture in zip(names, sample.pictures, strict=True):
            Image.fromarray(picture.pixels).save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
