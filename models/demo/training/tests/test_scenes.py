"""Scenes and their pixels: what each split may show, and what the patch labels say."""

from random import Random

import numpy as np
import pytest

from demo_training.assets import (
    GLYPH_EM,
    HAN_FONTS,
    HELD_OUT_HAN_FONT,
    HELD_OUT_LATIN_FONT,
    HELD_OUT_STYLE,
    LATIN_FONTS,
    TRAINING_STYLES,
    load_assets,
)
from demo_training.drawing import COLOUR_CLASS, draw
from demo_training.lexicon import (
    CHARACTERS,
    CLASS_NAMES,
    CLASS_OF_CHARACTER,
    CLASS_OF_CONCEPT,
    CLASS_OF_SHAPE,
    CONCEPTS,
    DIGITS,
    HAN,
    LETTERS,
    SHAPES,
)
from demo_training.scenes import (
    Emoji,
    Form,
    Ground,
    Scene,
    Sign,
    Split,
    Thing,
    detail_scene,
    has_held_out_pair,
    is_held_out_layout,
    is_held_out_text,
    single_scene,
    text_scene,
    text_width,
)

SPLITS: tuple[Split, ...] = ("train", "layouts", "pairs", "strings", "style", "font", "phrasing")
WHITE = Ground("white", (245, 245, 245))
RED = (220, 40, 40)


def scenes(split: Split, count: int = 40, canvas: int = 448) -> list[Scene]:
    rng = Random(f"{split}{canvas}")
    drawn = [single_scene(rng, canvas, split) for _ in range(count)]
    if split != "pairs":
        drawn += [text_scene(rng, canvas, split) for _ in range(count)]
        drawn += [detail_scene(rng, split) for _ in range(count)]
    return drawn


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_shows_what_is_its_own(split: Split) -> None:
    for scene in scenes(split):
        if scene.things:
            assert is_held_out_layout(scene) == (split in ("layouts", "phrasing"))
            assert has_held_out_pair(scene) == (split == "pairs")
        for sign in scene.signs:
            assert is_held_out_text(sign.label) == (split == "strings")


@pytest.mark.parametrize("split", SPLITS)
def test_styles_and_fonts_are_held_out(split: Split) -> None:
    looks = [thing.look for scene in scenes(split) for thing in scene.things]
    styles = {look.style for look in looks if isinstance(look, Emoji)}
    fonts = {look.font for look in looks if isinstance(look, Sign)}
    assert styles <= ({HELD_OUT_STYLE} if split == "style" else set(TRAINING_STYLES))
    known_fonts = {*LATIN_FONTS, *HAN_FONTS}
    held_out_fonts = {HELD_OUT_LATIN_FONT, HELD_OUT_HAN_FONT}
    assert fonts <= (held_out_fonts if split == "font" else known_fonts)


def test_held_out_shares_are_near_their_aims() -> None:
    names = [noun.en for noun in CONCEPTS]
    rng = Random(1)
    # A tenth of random texts, and of single things at places.
    texts = ["".join(rng.choices(LETTERS, k=4)) for _ in range(2000)]
    assert 0.07 < np.mean([is_held_out_text(text) for text in texts]) < 0.13
    things = [
        Thing(Emoji(noun, "noto"), 75, 75, 64, place) for noun in CONCEPTS for place in range(9)
    ]
    lone = [is_held_out_layout(Scene(448, 448, WHITE, (thing,))) for thing in things]
    assert 0.07 < np.mean(lone) < 0.13
    assert len(names) == len(set(names))


@pytest.mark.parametrize("canvas", [224, 448])
def test_things_lie_inside_and_apart(canvas: int) -> None:
    for scene in scenes("train", 100, canvas):
        places = [thing.place for thing in scene.things]
        assert len(places) == len(set(places))
        for thing in scene.bodies:
            assert thing.size / 2 <= thing.x <= scene.width - thing.size / 2
            assert thing.size / 2 <= thing.y <= scene.height - thing.size / 2
        for sign in scene.signs:
            assert isinstance(sign.look, Sign)
            width = text_width(sign.look.text, sign.look.font, sign.size)
            assert width / 2 <= sign.x <= scene.width - width / 2


@pytest.mark.parametrize("canvas", [224, 448])
def test_a_place_is_where_its_name_says(canvas: int) -> None:
    rng = Random(2)
    for _ in range(150):
        for thing in single_scene(rng, canvas, "train").things:
            assert thing.place is not None
            cell = canvas / 3
            assert thing.place == int(thing.y // cell) * 3 + int(thing.x // cell)


def test_details_lie_inside_one_tile() -> None:
    rng = Random(3)
    sizes = set()
    for _ in range(60):
        scene = detail_scene(rng, "train")
        sizes.add((scene.width, scene.height))
        tiles = [(thing.x // 448, thing.y // 448) for thing in scene.things]
        assert len(set(tiles)) == len(tiles) == scene.width * scene.height // 448**2
        assert scene.signs
        for sign in scene.signs:
            assert isinstance(sign.look, Sign)
            half = text_width(sign.look.text, sign.look.font, sign.size) // 2
            assert (sign.x - half) // 448 == (sign.x + half) // 448
    assert sizes == {(896, 896), (896, 448), (448, 896)}


def test_labels_say_what_is_drawn() -> None:
    panda, heart = CONCEPTS[0], SHAPES[5]
    things = (
        Thing(Emoji(panda, "noto"), 75, 75, 104, 0),
        Thing(Form(heart, "red", RED), 373, 75, 104, 2),
        Thing(Sign("A7", "noto-sans", "red", RED, None), 224, 373, 72, 7),
    )
    drawing = draw(Scene(448, 448, WHITE, things))
    assert drawing.classes.shape == drawing.colours.shape == (32, 32)
    assert drawing.classes[5, 5] == CLASS_OF_CONCEPT["panda"]
    assert drawing.colours[5, 5] == 0
    assert drawing.classes[5, 26] == CLASS_OF_SHAPE["heart"]
    assert drawing.colours[5, 26] == COLOUR_CLASS["red"]
    row = drawing.classes[26]
    assert CLASS_OF_CHARACTER["A"] in row[12:16]
    assert CLASS_OF_CHARACTER["7"] in row[16:20]
    assert drawing.classes[16, 16] == 0
    assert drawing.colours[16, 16] == COLOUR_CLASS["white"]
    assert tuple(drawing.pixels[5 * 14 + 7, 26 * 14 + 7]) == pytest.approx(RED, abs=1)
    assert CLASS_NAMES[CLASS_OF_CONCEPT["panda"]] == ("panda", "熊猫")
    assert CLASS_NAMES[CLASS_OF_CHARACTER["7"]] == ("7", "7")


@pytest.mark.parametrize(
    "pattern", ["", "across", "down", "columns", "rows", "checks", "diagonals"]
)
def test_a_ground_keeps_its_colour(pattern: str) -> None:
    ground = Ground("blue", (50, 90, 220), pattern, 16, 24)
    pixels = draw(Scene(448, 896, ground, ())).pixels
    assert pixels.shape == (896, 448, 3)
    assert pixels.reshape(-1, 3).mean(axis=0) == pytest.approx((50, 90, 220), abs=2)
    assert (pixels.std() > 0) == bool(pattern) or pixels.reshape(-1, 3).std(axis=0).max() == 0


def test_the_assets_have_every_concept_and_character() -> None:
    assets = load_assets()
    for noun in CONCEPTS:
        assert len(assets.training_styles[noun.en]) >= 3
        assert (HELD_OUT_STYLE, noun.en) in assets.sprites
        sprite = assets.sprites[HELD_OUT_STYLE, noun.en]
        assert sprite.shape == (128, 128, 4)
        assert (sprite[..., 3] > 0).mean() > 0.1
    for font in (*LATIN_FONTS, HELD_OUT_LATIN_FONT):
        for character in DIGITS + LETTERS:
            assert assets.glyphs[font, character].max() > 200
    for font in (*HAN_FONTS, HELD_OUT_HAN_FONT):
        for character in HAN:
            assert assets.glyphs[font, character].shape[1] == GLYPH_EM
    assert len(set(CHARACTERS)) == len(CHARACTERS)


def test_the_notice_names_every_source() -> None:
    from demo_training.assets import ASSETS_FILE

    notice = (ASSETS_FILE.parents[2] / "NOTICE").read_text(encoding="utf-8")
    for style in (*TRAINING_STYLES, HELD_OUT_STYLE):
        assert f"@iconify-json/{style} " in notice
    for licence in ("MIT License", "Apache-2.0", "CC-BY-4.0", "OFL-1.1", "Bitstream"):
        assert licence in notice
    assert ASSETS_FILE.stat().st_size < 5_000_000
