"""What a picture shows, before it has pixels: things at places on a ground, laid out at random."""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from random import Random
from typing import Final, Literal

from demo_training.assets import (
    GLYPH_EM,
    HAN_FONTS,
    HELD_OUT_HAN_FONT,
    HELD_OUT_LATIN_FONT,
    HELD_OUT_STYLE,
    LATIN_FONTS,
    load_assets,
)
from demo_training.lexicon import (
    COLOURS,
    CONCEPTS,
    DIGITS,
    HAN,
    LETTERS,
    SHAPES,
    SIGNS_EN,
    SIGNS_ZH,
    Noun,
    Words,
)

Rgb = tuple[int, int, int]
# train: what training sees. layouts, pairs, strings: arrangements, pairs of concepts and texts
# that training never shows. style, font: an art style and fonts that it never shows. phrasing:
# held-out layouts, asked about in held-out words.
Split = Literal["train", "layouts", "pairs", "strings", "style", "font", "phrasing"]

COLOUR_VALUES: Final[dict[str, Rgb]] = {
    "red": (220, 40, 40),
    "orange": (245, 135, 25),
    "yellow": (245, 215, 50),
    "green": (50, 165, 70),
    "blue": (50, 90, 220),
    "purple": (130, 60, 170),
    "pink": (250, 150, 190),
    "brown": (125, 80, 45),
    "black": (25, 25, 25),
    "white": (245, 245, 245),
    "gray": (130, 130, 130),
}
PATTERNS: Final = ("across", "down", "columns", "rows", "checks", "diagonals")
SIZES: Final = (64, 72, 88, 104, 120, 140, 176, 220, 280)
EMS: Final = (44, 52, 60, 72, 90)
DETAIL_EMS: Final = (40, 44, 52)
MOST_THINGS: Final = 5
TILE: Final = 448


@dataclass(frozen=True)
class Emoji:
    """A sprite: the noun in an art style; `variant` 0..2 tilts and shades it."""

    noun: Noun
    style: str
    variant: int = 0
    mirrored: bool = False


@dataclass(frozen=True)
class Form:
    """A shape of one colour."""

    shape: Noun
    colour: str
    rgb: Rgb

    @property
    def noun(self) -> Noun:
        """The coloured shape as a noun, "red circle"."""
        en, plural = (f"{self.colour} {name}" for name in (self.shape.en, self.shape.plural))
        return Noun(en, plural, f"{COLOURS[self.colour]}{self.shape.zh}", self.shape.measure)


@dataclass(frozen=True)
class Sign:
    """A line of text, on a plate of its own (`plate`) or on the ground."""

    text: str
    font: str
    colour: str
    rgb: Rgb
    plate: Rgb | None


Look = Emoji | Form | Sign


@dataclass(frozen=True)
class Thing:
    """Something in a picture.

    Attributes:
        look: what it looks like.
        x: centre, pixels from the left.
        y: centre, pixels from the top.
        size: side in pixels; of a sign, the em of its font.
        place: index in lexicon.PLACES, or None where it lies between two places.
    """

    look: Look
    x: int
    y: int
    size: int
    place: int | None

    @property
    def noun(self) -> Noun | None:
        """What it is called; None for a sign."""
        return None if isinstance(self.look, Sign) else self.look.noun

    @property
    def label(self) -> str:
        """What makes it the same thing as another: its name, or a sign's text."""
        return self.look.text if isinstance(self.look, Sign) else self.look.noun.en

    @property
    def one(self) -> Words:
        """It as the object of a sentence: "a panda", 'the text "TAXI"'."""
        if isinstance(self.look, Sign):
            return Words(f'the text "{self.look.text}"', f"文字“{self.look.text}”")
        return self.look.noun.one


@dataclass(frozen=True)
class Ground:
    """The background: a named colour, and a pattern of its lighter and darker tones.

    Attributes:
        colour: a key of lexicon.COLOURS.
        rgb: the mean colour.
        pattern: one of PATTERNS, or "" for a plain ground.
        contrast: difference between the tones, signed, 0-255.
        period: width of a stripe in pixels.
    """

    colour: str
    rgb: Rgb
    pattern: str = ""
    contrast: int = 0
    period: int = 16


@dataclass(frozen=True)
class Scene:
    """A picture's content; `things` are in reading order."""

    width: int
    height: int
    ground: Ground
    things: tuple[Thing, ...]

    @property
    def is_large(self) -> bool:
        """Whether it takes more than one tile."""
        return max(self.width, self.height) > TILE

    @property
    def signs(self) -> list[Thing]:
        """The things that are text."""
        return [thing for thing in self.things if isinstance(thing.look, Sign)]

    @property
    def bodies(self) -> list[Thing]:
        """The things that are not text."""
        return [thing for thing in self.things if not isinstance(thing.look, Sign)]

    def with_things(self, things: Iterable[Thing]) -> Scene:
        """Returns the scene with other things, in reading order."""
        return replace(self, things=tuple(sorted(things, key=_reading_order)))


def _reading_order(thing: Thing) -> tuple[int, int]:
    return (4 if thing.place is None else thing.place, thing.x)


# Splits. A hash decides, so that the same seed in any process decides alike.


def _hash(value: object) -> int:
    return zlib.crc32(repr(value).encode())


def is_held_out_layout(scene: Scene) -> bool:
    """Whether training never shows these things at these places (one layout in ten)."""
    return _hash([(thing.place, thing.label) for thing in scene.things]) % 10 == 0


def has_held_out_pair(scene: Scene) -> bool:
    """Whether two of the concepts are never together in training (one pair in twenty)."""
    names = {thing.label for thing in scene.bodies if isinstance(thing.look, Emoji)}
    return any(is_held_out_pair(*pair) for pair in combinations(sorted(names), 2))


@functools.cache
def is_held_out_pair(first: str, second: str) -> bool:
    """Whether two concepts, in alphabetical order, are never together in training."""
    return _hash((first, second)) % 20 == 0


def is_held_out_text(text: str) -> bool:
    """Whether training never shows a sign with this text (one in ten; never one character)."""
    return len(text) > 1 and _hash(text) % 10 == 0


def is_allowed(scene: Scene, split: Split) -> bool:
    """Whether a scene can be seen and belongs to a split.

    Style, font and text are drawn to fit the split already.
    """
    if not all(is_visible(thing.look, scene.ground.rgb) for thing in scene.things):
        return False
    if not scene.things:
        return True
    if has_held_out_pair(scene) != (split == "pairs"):
        return False
    return is_held_out_layout(scene) == (split in ("layouts", "phrasing"))


# Looks.


def _near(rng: Random, value: Rgb) -> Rgb:
    red, green, blue = (min(255, max(0, level + rng.randint(-12, 12))) for level in value)
    return red, green, blue


def colour_distance(first: Sequence[float], second: Sequence[float]) -> float:
    """Euclidean distance in RGB, 0 to 441."""
    return math.dist(first, second)


def luma(rgb: Sequence[float]) -> float:
    """Brightness as the eye weighs it (ITU-R BT.601), 0 to 255."""
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


def emoji(rng: Random, noun: Noun, split: Split) -> Emoji:
    """Returns a sprite of the noun in a random style of the split."""
    styles = load_assets().training_styles[noun.en]
    style = HELD_OUT_STYLE if split == "style" else rng.choice(styles)
    return Emoji(noun, style, rng.randrange(3), rng.random() < 0.5)


def form(rng: Random, shape: Noun, colour: str) -> Form:
    """Returns a shape in a shade of the colour."""
    return Form(shape, colour, _near(rng, COLOUR_VALUES[colour]))


def other_look(rng: Random, taken: Iterable[str], split: Split) -> Emoji | Form:
    """Returns a random sprite (four in five) or shape whose label is not taken."""
    taken = set(taken)
    while True:
        look: Emoji | Form
        if rng.random() < 0.8:
            look = emoji(rng, rng.choice(CONCEPTS), split)
        else:
            look = form(rng, rng.choice(SHAPES), rng.choice(list(COLOURS)))
        if look.noun.en not in taken:
            return look


def _looks(rng: Random, count: int, split: Split) -> list[Emoji | Form]:
    looks: list[Emoji | Form] = []
    for _ in range(count):
        looks.append(other_look(rng, [look.noun.en for look in looks], split))
    return looks


def is_visible(look: Look, ground: Rgb) -> bool:
    """Whether a look stands out from a ground; the thresholds were chosen by eye."""
    if isinstance(look, Emoji):
        mean = load_assets().mean_colours[look.style, look.noun.en]
        return colour_distance(mean, ground) > 60
    if isinstance(look, Form):
        return colour_distance(look.rgb, ground) > 90
    return look.plate is not None or abs(luma(look.rgb) - luma(ground)) > 75


def ground_for(rng: Random, looks: Iterable[Look]) -> Ground:
    """Returns a random ground on which all the looks can be seen, as far as one can be found."""
    looks = list(looks)
    ground = _ground(rng)
    for _ in range(20):
        if all(is_visible(look, ground.rgb) for look in looks):
            break
        ground = _ground(rng)
    return ground


def _ground(rng: Random) -> Ground:
    colour = rng.choice(list(COLOURS))
    rgb = _near(rng, COLOUR_VALUES[colour])
    if rng.random() < 0.5:
        return Ground(colour, rgb)
    contrast = rng.choice((-1, 1)) * rng.randint(8, 22)
    return Ground(colour, rgb, rng.choice(PATTERNS), contrast, rng.choice((12, 16, 24, 36)))


# Places. A canvas has nine cells; a thing stays near the middle of its own.


def thing_at(rng: Random, look: Look, place: int, size: int, canvas: int) -> Thing:
    """Returns a thing near the middle of a place, inside the canvas."""
    cell = canvas / 3
    slack = int(max(4, min(0.2 * cell, (cell - size) / 2 + 8)))
    x, y = (
        _inside(round((index + 0.5) * cell) + rng.randint(-slack, slack), size, canvas)
        for index in (place % 3, place // 3)
    )
    return Thing(look, x, y, size, place)


def _inside(centre: int, size: int, canvas: int) -> int:
    return min(max(centre, (size + 1) // 2), canvas - (size + 1) // 2)


def _sizes(canvas: int, most: float) -> list[int]:
    return [size for size in SIZES if size <= most * canvas]


def _scene(rng: Random, things: Iterable[Thing], canvas: int) -> Scene:
    things = tuple(things)
    ground = ground_for(rng, [thing.look for thing in things])
    return Scene(canvas, canvas, ground, ()).with_things(things)


def _objects_scene(rng: Random, canvas: int, split: Split) -> Scene:
    count = rng.choice((1, 2, 2, 3, 3, 4, MOST_THINGS)) if split != "pairs" else rng.randint(2, 4)
    if count == 1:
        return _scene(rng, [_lone_thing(rng, canvas, split)], canvas)
    sizes = _sizes(canvas, 0.33)
    things = [
        thing_at(rng, look, place, rng.choice(sizes), canvas)
        for look, place in zip(_looks(rng, count, split), rng.sample(range(9), count), strict=True)
    ]
    return _scene(rng, things, canvas)


def _lone_thing(rng: Random, canvas: int, split: Split) -> Thing:
    (look,) = _looks(rng, 1, split)
    size = rng.choice(_sizes(canvas, 0.63))
    place = 4 if size > 0.4 * canvas else rng.randrange(9)
    return thing_at(rng, look, place, size, canvas)


def _copies_scene(rng: Random, canvas: int, split: Split) -> Scene:
    """One or two kinds, of one kind more than of the other; nine things at most."""
    kinds = _looks(rng, rng.choice((1, 1, 2)), split)
    if len(kinds) == 1:
        looks = kinds * rng.randint(2, 9)
    else:
        fewer = rng.randint(1, 4)
        looks = [kinds[0]] * rng.randint(fewer + 1, 9 - fewer) + [kinds[1]] * fewer
    size = rng.choice(_sizes(canvas, 0.3))
    places = rng.sample(range(9), len(looks))
    things = [
        thing_at(rng, look, place, size, canvas) for look, place in zip(looks, places, strict=True)
    ]
    return _scene(rng, things, canvas)


def objects_scene(rng: Random, canvas: int, split: Split) -> Scene:
    """Returns one to five different things, at different places."""
    return _drawn_until_allowed(rng, canvas, split, copies=0.0)


def single_scene(rng: Random, canvas: int, split: Split) -> Scene:
    """Returns different things (most often), copies to count, or an empty ground."""
    if split in ("train", "layouts") and rng.random() < 0.02:
        return _scene(rng, (), canvas)
    return _drawn_until_allowed(rng, canvas, split, copies=0.2)


def _drawn_until_allowed(rng: Random, canvas: int, split: Split, copies: float) -> Scene:
    draw = _copies_scene if split != "pairs" and rng.random() < copies else _objects_scene
    scene = draw(rng, canvas, split)
    while not is_allowed(scene, split):
        scene = draw(rng, canvas, split)
    return scene


# Text. Alone, nobody can tell the letters O and I from 0 and 1: they stand in words only.
CLEAR_LETTERS: Final = LETTERS.replace("O", "Q").replace("I", "J")


def _text(rng: Random) -> str:
    kind = rng.random()
    if kind < 0.25:
        return "".join(rng.choices(DIGITS, k=rng.randint(1, 5)))
    if kind < 0.4:
        return rng.choice(SIGNS_EN)
    if kind < 0.65:
        return "".join(rng.choices(CLEAR_LETTERS, k=rng.randint(1, 6)))
    if kind < 0.7:
        return "".join(rng.choices(DIGITS + CLEAR_LETTERS, k=rng.randint(2, 5)))
    if kind < 0.85:
        return rng.choice(SIGNS_ZH)
    return "".join(rng.choices(HAN, k=rng.randint(1, 4)))


def _split_text(rng: Random, split: Split) -> str:
    text = _text(rng)
    while is_held_out_text(text) != (split == "strings"):
        text = _text(rng)
    return text


def font_for(rng: Random, text: str, split: Split) -> str:
    """Returns a random font of the split that has the text's characters."""
    is_han = any(character in HAN for character in text)
    if split == "font":
        return HELD_OUT_HAN_FONT if is_han else HELD_OUT_LATIN_FONT
    return rng.choice(HAN_FONTS if is_han else LATIN_FONTS)


def text_width(text: str, font: str, em: int) -> int:
    """Returns the width of a line in pixels."""
    glyphs = load_assets().glyphs
    return sum(glyph_size(glyphs[font, character].shape, em)[1] for character in text)


def glyph_size(shape: tuple[int, ...], em: int) -> tuple[int, int]:
    """Returns the height and width in pixels of a glyph of the given shape at 72 pixels."""
    height, width = (max(1, round(side * em / GLYPH_EM)) for side in shape)
    return height, width


def sign(rng: Random, split: Split) -> Sign:
    """Returns a random text; if it has a plate, one that it can be read on."""
    text = _split_text(rng, split)
    colour = rng.choice(list(COLOURS))
    rgb = _near(rng, COLOUR_VALUES[colour])
    plate = None
    if rng.random() < 0.4:
        plates = [value for value in COLOUR_VALUES.values() if abs(luma(value) - luma(rgb)) > 85]
        plate = _near(rng, rng.choice(plates)) if plates else None
    return Sign(text, font_for(rng, text, split), colour, rgb, plate)


def sign_at(rng: Random, look: Sign, row: int, canvas: int) -> Thing | None:
    """Returns a line of text in a row (0..2) of the canvas; None if no size of it fits."""
    ems = [em for em in EMS if text_width(look.text, look.font, em) <= canvas - 16]
    if not ems:
        return None
    em = rng.choice(ems)
    # The whole line stays near the middle, so that its place is "at the top", not a corner.
    slack = min((canvas - text_width(look.text, look.font, em)) // 2 - 4, canvas // 10)
    cell = canvas / 3
    lift = int(max(2, (cell - 1.1 * em) / 2))
    y = _inside(round((row + 0.5) * cell) + rng.randint(-lift, lift), round(1.2 * em), canvas)
    return Thing(look, canvas // 2 + rng.randint(-slack, slack), y, em, 3 * row + 1)


def _signs_and_objects(rng: Random, canvas: int, split: Split) -> Scene:
    rows = rng.sample(range(3), rng.choice((1, 1, 2)))
    things = [sign_at(rng, sign(rng, split), row, canvas) for row in rows]
    free = [place for place in range(9) if place // 3 not in rows]
    count = rng.choice((0, 1, 2)) if len(rows) == 1 else rng.choice((0, 1))
    sizes = _sizes(canvas, 0.33)
    looks = _looks(rng, count, split)
    things += [
        thing_at(rng, look, place, rng.choice(sizes), canvas)
        for look, place in zip(looks, rng.sample(free, count), strict=True)
    ]
    return _scene(rng, [thing for thing in things if thing is not None], canvas)


def text_scene(rng: Random, canvas: int, split: Split) -> Scene:
    """Returns one or two lines of text, each in a row of its own, and up to two things."""
    while True:
        scene = _signs_and_objects(rng, canvas, split)
        texts = [thing.label for thing in scene.signs]
        if texts and len(set(texts)) == len(texts) and is_allowed(scene, split):
            return scene


# Large pictures: small things, one in each quarter or half.

GRIDS: Final[dict[tuple[int, int], tuple[int, ...]]] = {
    (2, 2): (0, 2, 6, 8),
    (2, 1): (3, 5),
    (1, 2): (1, 7),
}


def detail_scene(rng: Random, split: Split) -> Scene:
    """Returns a picture of 2x2, 2x1 or 1x2 tiles of 448 pixels, each with a small thing.

    At least one is a text too small to read in a thumbnail.
    """
    while True:
        scene = _detail_scene(rng, split)
        labels = [thing.label for thing in scene.things]
        if len(set(labels)) == len(labels) and is_allowed(scene, split):
            return scene


def _detail_scene(rng: Random, split: Split) -> Scene:
    (columns, rows), places = rng.choice(list(GRIDS.items()))
    sign_count = rng.randint(1, len(places))
    looks: list[Look] = [sign(rng, split) for _ in range(sign_count)]
    looks += _looks(rng, len(places) - sign_count, split)
    rng.shuffle(looks)
    things = [
        _detail(rng, look, place, columns, rows) for look, place in zip(looks, places, strict=True)
    ]
    ground = ground_for(rng, looks)
    return Scene(TILE * columns, TILE * rows, ground, ()).with_things(things)


def _detail(rng: Random, look: Look, place: int, columns: int, rows: int) -> Thing:
    size = rng.choice(DETAIL_EMS if isinstance(look, Sign) else SIZES[:4])
    width = text_width(look.text, look.font, size) if isinstance(look, Sign) else size
    x = _within_tile(rng, place % 3, columns, width)
    y = _within_tile(rng, place // 3, rows, round(1.3 * size))
    return Thing(look, x, y, size, place)


def _within_tile(rng: Random, third: int, tiles: int, extent: int) -> int:
    """Returns a centre inside one tile, near the third (0..2) of the picture that names it."""
    least, most = extent // 2 + 8, TILE - 8 - extent // 2
    if tiles == 1:
        return rng.randint(max(least, TILE // 3), min(most, 2 * TILE // 3))
    outer = rng.randint(least, max(least, min(most, 2 * TILE // 3)))
    return outer if third == 0 else tiles * TILE - outer
