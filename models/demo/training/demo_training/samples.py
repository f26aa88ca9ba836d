"""Samples: pictures with conversations about them, pure functions of a seed."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Final, Literal

import numpy as np
from PIL import Image

from demo_training.changes import (
    FRAME_COUNT,
    IMAGES,
    change,
    event,
    frame_name,
    same,
    unchanged,
    which,
)
from demo_training.conversation import chain, foreign_facts, unknown_fact
from demo_training.drawing import PATCH, draw
from demo_training.grammar import Fact, Turn, ask
from demo_training.lexicon import CLASS_NAMES, Language, Words
from demo_training.questions import View, facts
from demo_training.scenes import (
    Ground,
    Scene,
    Split,
    detail_scene,
    single_scene,
    text_scene,
)
from demo_training.small_talk import small_talk

__all__ = [
    "CLASS_NAMES",
    "KIND_SHARES",
    "Kind",
    "Picture",
    "Sample",
    "Split",
    "Turn",
    "make_sample",
]

Kind = Literal["single", "text", "pair", "video", "tiles", "chat"]
KIND_SHARES: Final[dict[Kind, float]] = {
    "single": 0.45,
    "text": 0.20,
    "pair": 0.15,
    "video": 0.10,
    "tiles": 0.05,
    "chat": 0.05,
}
DIALOGUE_COUNT: Final = 6
PLACEHOLDER: Final = "<image>"
NO_GROUND: Final = Ground("gray", (128, 128, 128))
OTHER_SYSTEM_TEXTS: Final = (
    "You are a helpful assistant.",
    "Answer briefly.",
    "You are a friendly assistant that describes pictures.",
    "你是一个有用的助手。",
    "请简短回答。",
)


@dataclass(frozen=True)
class Picture:
    """A drawn picture.

    Attributes:
        pixels: uint8 [height, width, 3], RGB.
        classes: int16 [height // 14, width // 14], index in CLASS_NAMES of each patch of 14
            pixels; 0 is the background. None for a picture larger than one tile.
        colours: int16 of the same shape: 0 where no colour is named (sprites), else 1 + index in
            lexicon.COLOURS; of the ground, of shapes and of text. None like `classes`.
    """

    pixels: np.ndarray
    classes: np.ndarray | None
    colours: np.ndarray | None


@dataclass(frozen=True)
class Sample:
    """Pictures and independent conversations about them.

    Attributes:
        pictures: in the order of their `<image>` places.
        dialogues: each a conversation of its own, whose first question holds the places.
        system: the system message; None for the model's stock text.
    """

    pictures: tuple[Picture, ...]
    dialogues: tuple[tuple[Turn, ...], ...]
    system: str | None


def make_sample(
    seed: int, *, kind: Kind | None = None, split: Split = "train", canvas: int = 448
) -> Sample:
    """Returns the sample of a seed: the same arguments give the same pixels and texts.

    Args:
        seed: any integer.
        kind: what to make; None draws one by KIND_SHARES.
        split: which data; see scenes.Split. "pairs" has no text, "strings" and "font" no more
            than text: make them with the kinds single and text.
        canvas: side of the pictures in pixels, 448 or 224, at the same scale of the things;
            large pictures ("tiles") have their own sizes.
    """
    rng = Random(f"{seed}/{kind}/{split}/{canvas}")
    chosen = kind or rng.choices(list(KIND_SHARES), list(KIND_SHARES.values()))[0]
    system = rng.choice(OTHER_SYSTEM_TEXTS) if rng.random() < 0.1 else None
    maker = _Maker(rng, split, canvas)
    pictures, dialogues = maker.makers[chosen]()
    return Sample(pictures, dialogues, system)


_Made = tuple[tuple[Picture, ...], tuple[tuple[Turn, ...], ...]]


class _Maker:
    """The making of one sample: its random numbers, its split, its canvas."""

    def __init__(self, rng: Random, split: Split, canvas: int) -> None:
        self._rng = rng
        self._split = split
        self._canvas = canvas
        self.makers: dict[Kind, Callable[[], _Made]] = {
            "single": self._single,
            "text": self._text,
            "pair": self._pair,
            "video": self._video,
            "tiles": self._tiles,
            "chat": self._chat,
        }

    def _single(self) -> _Made:
        if self._split == "train" and self._rng.random() < 0.02:
            return self._foreign()
        return self._about(single_scene(self._rng, self._canvas, self._split))

    def _text(self) -> _Made:
        return self._about(text_scene(self._rng, self._canvas, self._split))

    def _tiles(self) -> _Made:
        return self._about(detail_scene(self._rng, self._split))

    def _about(self, scene: Scene) -> _Made:
        view = self._view(scene)
        found = facts(self._rng, view, DIALOGUE_COUNT)
        if self._rng.random() < 0.1:
            found[:1] = [unknown_fact(self._rng, view)]
        places = f"{PLACEHOLDER}\n"
        return (self._picture(scene),), self._dialogues(found, (view,), places)

    def _foreign(self) -> _Made:
        pixels = _noise(self._rng, self._canvas)
        patches = np.zeros((self._canvas // PATCH,) * 2, np.int16)
        view = self._view(Scene(self._canvas, self._canvas, NO_GROUND, ()))
        found = foreign_facts(self._rng, view, 3)
        picture = Picture(pixels, patches, patches)
        return (picture,), tuple((self._turn(fact, f"{PLACEHOLDER}\n"),) for fact in found)

    def _view(self, scene: Scene) -> View:
        picture = Words(
            self._rng.choice(("the picture", "the image", "this picture", "this image")),
            self._rng.choice(("图片", "这张图", "这幅图", "图")),
        )
        if self._rng.random() < 0.6:
            return View(scene, picture, Words("", ""))
        return View(scene, picture, self._scope(picture))

    def _scope(self, picture: Words) -> Words:
        return Words(f" in {picture.en}", f"{picture.zh}{self._rng.choice('里中')}")

    def _pair(self) -> _Made:
        rng = self._rng
        made, drawn = None, rng.random()
        if drawn < 0.6:
            made = change(rng, self._canvas, self._split)
        elif drawn < 0.7:
            made = unchanged(self._any_scene())
        if made is not None:
            first, second = made.before, made.after
        else:
            first, second = (self._any_scene() for _ in range(2))
        views = self._pair_views(first, second)
        found = [which(rng, first, second, self._split)]
        found += [fact for fact in [which(rng, first, second, self._split)] if fact != found[0]]
        if made is not None or rng.random() < 0.2:
            found.append(same(first, second))
        for view in views:
            found += facts(rng, view, 2)
        if made is not None:
            found[:0] = [made.fact]
        places = rng.choices(
            (f"Image-1: {PLACEHOLDER}\nImage-2: {PLACEHOLDER}\n", f"{PLACEHOLDER}\n" * 2), (4, 1)
        )[0]
        pictures = (self._picture(first), self._picture(second))
        return pictures, self._dialogues(found, views, places)

    def _any_scene(self) -> Scene:
        draw_scene = text_scene if self._rng.random() < 0.3 else single_scene
        return draw_scene(self._rng, self._canvas, self._split)

    def _pair_views(self, first: Scene, second: Scene) -> tuple[View, View]:
        ordinals = ("first", "second")
        named = [
            Words(self._rng.choice((name.en, f"the {ordinal} image")), name.zh)
            for name, ordinal in zip(IMAGES, ordinals, strict=True)
        ]
        labels = [tuple(thing.label for thing in scene.things) for scene in (first, second)]
        return (
            View(first, named[0], self._scope(named[0]), labels[1]),
            View(second, named[1], self._scope(named[1]), labels[0]),
        )

    def _video(self) -> _Made:
        rng = self._rng
        played = event(rng, self._canvas, self._split)
        mark = rng.choice(("Frame", "Frame-"))
        # What happens once; what exactly twice, perhaps in the other language.
        found = [*played.facts, *played.facts[1:]]
        for index in rng.sample(range(FRAME_COUNT), 3):
            found += facts(rng, self._frame_view(played.frames, index, mark), 1)
        places = "".join(f"{mark}{index + 1}: {PLACEHOLDER}\n" for index in range(FRAME_COUNT))
        if rng.random() < 0.1:
            places = f"{PLACEHOLDER}\n" * FRAME_COUNT
        drawn = {id(frame): self._picture(frame) for frame in played.frames}
        pictures = tuple(drawn[id(frame)] for frame in played.frames)
        return pictures, tuple((self._turn(fact, places),) for fact in found)

    def _frame_view(self, frames: Sequence[Scene], index: int, mark: str) -> View:
        english = self._rng.choice((f"{mark}{index + 1}", frame_name(index).en))
        picture = Words(english, frame_name(index).zh)
        labels = {thing.label for frame in frames for thing in frame.things}
        return View(frames[index], picture, self._scope(picture), tuple(labels))

    def _chat(self) -> _Made:
        languages: tuple[Language, ...] = ("en", "zh")
        talks = [
            small_talk(self._rng, language, held_out=self._split == "phrasing")
            for language in languages * 2
        ]
        return (), tuple(talks)

    def _dialogues(
        self, found: list[Fact], views: tuple[View, ...], places: str
    ) -> tuple[tuple[Turn, ...], ...]:
        dialogues: list[tuple[Turn, ...]] = [(self._turn(fact, places),) for fact in found]
        if self._rng.random() < 0.5:
            linked = chain(self._rng, views, self._rng.randint(2, 5))
            if linked:
                dialogues[-2:] = [self._conversation(linked, places)]
        return tuple(dialogues)

    def _conversation(self, linked: list[Fact], places: str) -> tuple[Turn, ...]:
        language, form = self._language(), self._form()
        held_out = self._split == "phrasing"
        turns = [ask(self._rng, fact, language, form, held_out=held_out) for fact in linked]
        return (self._with_places(turns[0], places), *turns[1:])

    def _turn(self, fact: Fact, places: str) -> Turn:
        held_out = self._split == "phrasing"
        turn = ask(self._rng, fact, self._language(), self._form(), held_out=held_out)
        return self._with_places(turn, places)

    def _language(self) -> Language:
        return "en" if self._rng.random() < 0.5 else "zh"

    def _form(self) -> Literal["sentence", "word"]:
        return "sentence" if self._rng.random() < 0.6 else "word"

    def _with_places(self, turn: Turn, places: str) -> Turn:
        if places == f"{PLACEHOLDER}\n" and self._rng.random() < 0.1:
            return replace(turn, question=f"{turn.question}\n{PLACEHOLDER}")
        return replace(turn, question=places + turn.question)

    def _picture(self, scene: Scene) -> Picture:
        drawing = draw(scene)
        pixels = drawing.pixels
        if self._split == "train" and self._rng.random() < 0.04:
            pixels = _weathered(self._rng, pixels)
        if scene.is_large:
            return Picture(pixels, None, None)
        return Picture(pixels, drawing.classes, drawing.colours)


def _noise(rng: Random, canvas: int) -> np.ndarray:
    """Returns a picture of nothing: blurred patches of all colours under fine grain."""
    random = np.random.default_rng(rng.getrandbits(64))
    coarse = random.integers(0, 256, (*random.integers(2, 12, 2), 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((canvas, canvas), Image.Resampling.BICUBIC)
    grain = random.integers(-24, 25, (canvas, canvas, 3), dtype=np.int16)
    noisy = np.asarray(smooth).astype(np.int16) + grain * rng.randrange(3)
    return noisy.clip(0, 255).astype(np.uint8)


def _weathered(rng: Random, pixels: np.ndarray) -> np.ndarray:
    """Returns the picture after what uploads go through: another size and back, JPEG."""
    image = Image.fromarray(pixels)
    size = tuple(round(side * rng.uniform(0.7, 1.4)) for side in image.size)
    file = io.BytesIO()
    image.resize((size[0], size[1]), Image.Resampling.BICUBIC).save(
        file, "JPEG", quality=rng.randint(70, 95)
    )
    with Image.open(file) as worn:
        return np.array(worn.resize(image.size, Image.Resampling.BICUBIC))
