"""The making of `assets.npz`: sprites from open emoji sets, glyph masks from open fonts.

Run once, by hand; training and tests need only the file it writes. It needs three packages that
the project does not install, in an environment of their own, and the two sources in folders:

    npm install --prefix sources @iconify-json/fluent-emoji@1.2.7 \
        @iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/noto@1.2.9 \
        @iconify-json/noto-v1@1.2.5 @iconify-json/fxemoji@1.2.2 @iconify-json/twemoji@1.2.5
    # Debian 12: fonts-dejavu-core 2.37-6, fonts-liberation2 2.1.5-1 (1.x is not OFL),
    #            fonts-noto-cjk 1:20220127+repack1-1
    pip install resvg-py==0.5.0 pillow==13.0.0 numpy==2.4.6
    python -m demo_training.prepare_assets --icons sources/node_modules/@iconify-json \
        --fonts /usr/share/fonts --out demo_training/assets.npz
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from demo_training.lexicon import CHARACTERS, CONCEPT_OF_EMOJI, DIGITS, LETTERS

SPRITE_SIZE: Final = 128
GLYPH_EM: Final = 72
# fluent-emoji and noto-v1 list no characters: they share the names of their sister sets.
NAME_SOURCE: Final = {"fluent-emoji": "fluent-emoji-flat", "noto-v1": "noto"}
STYLES: Final = ("fluent-emoji", "fluent-emoji-flat", "noto", "noto-v1", "fxemoji", "twemoji")
# fxemoji lists no characters and has names of its own; what is not here it lacks.
_FXEMOJI: Final = (
    "🐼=pandaface 🦊=foxsmiling 🐱=cat 🐶=dog 🐘=elephant 🐯=tiger 🐻=bear 🐨=koala 🐰=bunny"
    " 🐴=horseface 🐮=cowface 🐷=pig 🐵=monkeyface 🐸=frog 🐧=penguin 🐔=chicken 🐟=fish"
    " 🐳=spurtingwhale 🐙=octopus 🐌=snail 🐝=honeybee 🐢=turtle 🐬=dolphin 🐑=sheep 🐭=mouse"
    " 🐺=wolfface 🐍=snake 🍎=redapple 🍌=banana 🍓=strawberry 🍉=watermelon 🍋=lemon"
    " 🍍=pineapple 🍄=mushroom 🍕=sliceofpizza 🍔=hamburger 🍩=doughnut 🍪=cookie"
    " 🎂=birthdaycake 🍦=softicecream 🚗=automobile 🚌=bus 🚲=bicycle ✈=airplane 🚀=rocket"
    " 🚢=ship ⛵=sailboat 🚂=steamlocomotive 🚁=helicopter 🚜=tractor 🚑=ambulance"
    " 🚒=fireengine 🌳=deciduoustree 🌵=cactus 🌻=sunflower 🌹=rose 🌷=tulip ⚽=soccerball"
    " 🎈=balloon 🎁=present 🔑=key 🔔=bell ⏰=alarmclock 📷=camera 📱=cellphone"
    " 💻=personalcomputer 📺=television 🎸=guitar 🎹=musicalkeyboard ☂=umbrella 👑=crown"
    " 🎩=tophat 📕=closedbook 🔨=hammer 💡=lightbulb ☁=cloud 🌈=rainbow ❄=snowflake"
    " 🔥=fire 🏠=housebuilding 🏰=europeancastle 👻=ghost ⛄=snowmanwithoutsnow"
)
FXEMOJI: Final = dict(pair.split("=") for pair in _FXEMOJI.split())
# Name in the assets -> file, index of the Simplified Chinese face in a collection, whether it
# has Han characters. The last two are held out of training.
FONTS: Final = {
    "dejavu-sans-bold": ("DejaVuSans-Bold.ttf", 0, False),
    "dejavu-serif-bold": ("DejaVuSerif-Bold.ttf", 0, False),
    "dejavu-mono-bold": ("DejaVuSansMono-Bold.ttf", 0, False),
    "noto-sans-bold": ("NotoSansCJK-Bold.ttc", 2, True),
    "noto-sans": ("NotoSansCJK-Regular.ttc", 2, True),
    "noto-serif-bold": ("NotoSerifCJK-Bold.ttc", 2, True),
    "liberation-sans-bold": ("LiberationSans-Bold.ttf", 0, False),
    "noto-serif": ("NotoSerifCJK-Regular.ttc", 2, True),
}


class IconSet:
    """One set of SVG icons in iconify's JSON layout."""

    def __init__(self, folder: Path, style: str) -> None:
        """Reads the set `style` below the folder of all sets."""
        self._document = _json(folder / style / "icons.json")
        names = folder / NAME_SOURCE.get(style, style) / "chars.json"
        self._name_of_code = {} if style == "fxemoji" else _json(names)
        self._style = style

    def sprite(self, emoji: str) -> np.ndarray | None:
        """Returns uint8 [128, 128, 4] (not premultiplied), or None where the set lacks it."""
        name = self._name(emoji)
        while name in self._document.get("aliases", {}):
            name = self._document["aliases"][name]["parent"]
        icon = self._document["icons"].get(name)
        return None if icon is None else _rasterised(self._svg(icon))

    def _name(self, emoji: str) -> str | None:
        if self._style == "fxemoji":
            return FXEMOJI.get(emoji)
        code = f"{ord(emoji):x}"
        name: str | None = self._name_of_code.get(code) or self._name_of_code.get(f"{code}-fe0f")
        return name

    def _svg(self, icon: dict[str, Any]) -> str:
        width = icon.get("width", self._document.get("width", 16))
        height = icon.get("height", self._document.get("height", 16))
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
            f' viewBox="0 0 {width} {height}" width="{SPRITE_SIZE}" height="{SPRITE_SIZE}">'
            f"{icon['body']}</svg>"
        )


def _json(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def _rasterised(svg: str) -> np.ndarray:
    # Installed for this script alone, and without type stubs.
    import resvg_py  # type: ignore[import-not-found]

    with Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))) as image:
        sized = image.convert("RGBA").resize((SPRITE_SIZE, SPRITE_SIZE))
    pixels = np.array(sized)
    pixels[pixels[..., 3] == 0] = 0  # invisible colours would only cost bytes
    return pixels


def sprites(icons: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields ("style|concept", pixels) of every sprite that the sets have."""
    for style in STYLES:
        icon_set = IconSet(icons, style)
        for emoji, noun in CONCEPT_OF_EMOJI.items():
            pixels = icon_set.sprite(emoji)
            if pixels is not None:
                yield f"{style}|{noun.en}", pixels


def glyphs(fonts: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields ("font|character", uint8 mask [height, width]) at an em of 72 pixels.

    All masks of a font have one height, from ascender to descender of its capitals and Han.
    """
    for name, (file, face, has_han) in FONTS.items():
        path = next(fonts.rglob(file))
        font = ImageFont.truetype(path, GLYPH_EM, index=face)
        characters = CHARACTERS if has_han else DIGITS + LETTERS
        top, bottom = _extent(font, characters)
        for character in characters:
            width = round(font.getlength(character))
            image = Image.new("L", (width, bottom - top))
            ImageDraw.Draw(image).text((0, -top), character, fill=255, font=font)
            # 16 levels are enough for an edge, and compress to half the bytes.
            yield f"{name}|{character}", np.asarray(image) // 17 * 17


def _extent(font: ImageFont.FreeTypeFont, characters: str) -> tuple[int, int]:
    boxes = [font.getbbox(character) for character in characters]
    return int(min(box[1] for box in boxes)), int(max(box[3] for box in boxes))


def write_assets(icons: Path, fonts: Path, out: Path) -> None:
    """Writes the assets file; `assets.Assets` reads it."""
    sprite_keys, sprite_pixels = zip(*sprites(icons), strict=True)
    glyph_keys, masks = zip(*glyphs(fonts), strict=True)
    np.savez_compressed(
        out,
        sprite_keys=np.array(sprite_keys),
        sprite_pixels=np.stack(sprite_pixels),
        glyph_keys=np.array(glyph_keys),
        glyph_shapes=np.array([mask.shape for mask in masks], dtype=np.int16),
        glyph_masks=np.concatenate([mask.ravel() for mask in masks]),
    )
    print(f"{len(sprite_keys)} sprites, {len(glyph_keys)} glyphs, {out.stat().st_size} bytes")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Writes the assets of the demo model's pictures.")
    parser.add_argument("--icons", type=Path, required=True, help="folder of the icon sets")
    parser.add_argument("--fonts", type=Path, required=True, help="folder of the font files")
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    arguments = parser.parse_args()
    write_assets(arguments.icons, arguments.fonts, arguments.out)


if __name__ == "__main__":
    main()
