"""What differs between two pictures, and what happens in six frames, with the facts of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from demo_training.grammar import Fact, sentence
from demo_training.lexicon import COLOURS, ORDINALS, PLACES, Words
from demo_training.questions import NO, YES, noun_of, place_of
from demo_training.scenes import (
    SIZES,
    Form,
    Scene,
    Split,
    Thing,
    form,
    ground_for,
    has_held_out_pair,
    is_held_out_layout,
    is_visible,
    objects_scene,
    other_look,
    thing_at,
)

FRAME_COUNT: Final = 6
IMAGES: Final = (Words("Image-1", "第一张图"), Words("Image-2", "第二张图"))


@dataclass(frozen=True)
class Change:
    """Two pictures and their difference.

    Attributes:
        before: the first picture.
        after: the second picture.
        fact: the answer to "What is different?".
    """

    before: Scene
    after: Scene
    fact: Fact


@dataclass(frozen=True)
class Event:
    """Six frames and what happens in them.

    Attributes:
        frames: the pictures in order.
        facts: what happens, and what more can be asked about it.
    """

    frames: tuple[Scene, ...]
    facts: tuple[Fact, ...]


# Pairs.

_Edit = Callable[[Random, Scene, Split], tuple[Scene, Fact] | None]


def _difference(answer: Words, word: Words) -> Fact:
    return Fact("difference", "difference", answer, word)


NO_DIFFERENCE: Final = _difference(
    Words("The two images are the same.", "两张图一样。"), Words("nothing", "没有不同")
)


def _without(scene: Scene, thing: Thing) -> list[Thing]:
    return [other for other in scene.things if other is not thing]


def _labels(scene: Scene) -> list[str]:
    return [thing.label for thing in scene.things]


def _free_places(scene: Scene) -> list[int]:
    return sorted(set(range(9)) - {place_of(thing) for thing in scene.things})


def _replaced(rng: Random, scene: Scene, split: Split) -> tuple[Scene, Fact] | None:
    old = rng.choice(scene.things)
    look = other_look(rng, _labels(scene), split)
    new = replace(old, look=look)
    answer = sentence(
        "in Image-2 the {old} is replaced by {new}.",
        "第二张图中{old}变成了{name}。",
        old=noun_of(old).name,
        new=new.one,
        name=look.noun.name,
    )
    return scene.with_things([*_without(scene, old), new]), _difference(answer, look.noun.name)


def _added(rng: Random, scene: Scene, split: Split) -> tuple[Scene, Fact] | None:
    place = rng.choice(_free_places(scene))
    look = other_look(rng, _labels(scene), split)
    sizes = [size for size in SIZES if size <= 0.33 * scene.width]
    new = thing_at(rng, look, place, rng.choice(sizes), scene.width)
    answer = sentence(
        "in Image-2 there is also {new} {place}.",
        "第二张图的{place}多了{new}。",
        new=new.one,
        place=PLACES[place],
    )
    return scene.with_things([*scene.things, new]), _difference(answer, look.noun.name)


def _removed(rng: Random, scene: Scene, _: Split) -> tuple[Scene, Fact] | None:
    if len(scene.things) < 2:
        return None
    old = rng.choice(scene.things)
    name = noun_of(old).name
    answer = sentence("in Image-2 the {old} is missing.", "第二张图中少了{old}。", old=name)
    return scene.with_things(_without(scene, old)), _difference(answer, name)


def _moved(rng: Random, scene: Scene, _: Split) -> tuple[Scene, Fact] | None:
    old = rng.choice(scene.things)
    place = rng.choice(_free_places(scene))
    new = thing_at(rng, old.look, place, old.size, scene.width)
    name = noun_of(old).name
    answer = sentence(
        "in Image-2 the {old} moved: it is {place}.",
        "第二张图中{old}移到了{place}。",
        old=name,
        place=PLACES[place],
    )
    return scene.with_things([*_without(scene, old), new]), _difference(answer, name)


def _recoloured(rng: Random, scene: Scene, _: Split) -> tuple[Scene, Fact] | None:
    forms = [thing for thing in scene.things if isinstance(thing.look, Form)]
    if not forms:
        return None
    old = rng.choice(forms)
    if not isinstance(old.look, Form):
        return None
    colour = rng.choice([name for name in COLOURS if name != old.look.colour])
    new = replace(old, look=form(rng, old.look.shape, colour))
    if new.label in _labels(scene):
        return None
    answer = sentence(
        "in Image-2 the {old} is {colour}.",
        "第二张图中{old}变成了{colour}。",
        old=noun_of(old).name,
        colour=Words(colour, COLOURS[colour]),
    )
    after = scene.with_things([*_without(scene, old), new])
    return after, _difference(answer, Words(colour, COLOURS[colour]))


def _new_ground(rng: Random, scene: Scene, _: Split) -> tuple[Scene, Fact] | None:
    ground = ground_for(rng, [thing.look for thing in scene.things])
    if ground.colour == scene.ground.colour:
        return None
    old, new = (Words(it.colour, COLOURS[it.colour]) for it in (scene.ground, ground))
    answer = sentence(
        "the background changes from {old} to {new}.", "背景从{old}变成了{new}。", old=old, new=new
    )
    return replace(scene, ground=ground), _difference(answer, Words("background", "背景"))


def _same(_rng: Random, scene: Scene, _: Split) -> tuple[Scene, Fact] | None:
    return scene, NO_DIFFERENCE


EDITS: Final[tuple[_Edit, ...]] = (
    _replaced,
    _added,
    _removed,
    _moved,
    _recoloured,
    _new_ground,
    _same,
)


def change(rng: Random, canvas: int, split: Split) -> Change:
    """Returns two pictures that differ in one thing, or (one in seven) in none."""
    edit = rng.choice(EDITS)
    while True:
        before = objects_scene(rng, canvas, split)
        edited = edit(rng, before, split)
        if edited is not None and _is_allowed(edited[0], split):
            return Change(before, *edited)


def unchanged(scene: Scene) -> Change:
    """Returns the same picture twice."""
    return Change(scene, scene, NO_DIFFERENCE)


def _is_allowed(scene: Scene, split: Split) -> bool:
    # The first picture decides the split; the second must only not leak what is held out.
    if not all(is_visible(thing.look, scene.ground.rgb) for thing in scene.things):
        return False
    return split != "train" or not (is_held_out_layout(scene) or has_held_out_pair(scene))


def same(first: Scene, second: Scene) -> Fact:
    """Whether the two pictures are the same."""
    if first == second:
        answer = Words("Yes, the two images are the same.", "是的，两张图一样。")
        return Fact("same", "same", answer, YES)
    answer = Words("No, the two images are different.", "不，两张图不一样。")
    return Fact("same", "same", answer, NO)


def which(rng: Random, first: Scene, second: Scene, split: Split) -> Fact:
    """Which of two pictures has a thing: the first, the second, both or neither."""
    shown = {thing.label: thing for scene in (first, second) for thing in scene.bodies}
    things = list(shown.values())
    if things and rng.random() < 0.85:
        noun = noun_of(rng.choice(things))
    else:
        noun = other_look(rng, shown, split).noun
    has = [noun.en in _labels(scene) for scene in (first, second)]
    answer, word = _which_answer(has[0], has[1], noun.one.en, noun.zh)
    return Fact("which", "which", answer, word, {"one": noun.one, "noun": noun.name})


def _which_answer(in_first: bool, in_second: bool, one: str, zh: str) -> tuple[Words, Words]:
    if in_first and in_second:
        return Words(f"Both images have {one}.", f"两张图里都有{zh}。"), Words("both", "两张图")
    if not in_first and not in_second:
        told = Words(f"Neither image has {one}.", f"两张图里都没有{zh}。")
        return told, Words("neither", "都没有")
    image = IMAGES[0] if in_first else IMAGES[1]
    return Words(f"{image.en} has {one}.", f"{image.zh}里有{zh}。"), image


# Videos.


def frame_name(index: int) -> Words:
    """Returns what answers call the frame with this index: "frame 1", "第一帧"."""
    return Words(f"frame {index + 1}", f"{ORDINALS[index]}帧")


_DIRECTIONS: Final = (
    # first place, last place of the middle line; from, to; which way
    (3, 5, Words("from left to right", "从左边移到右边"), Words("right", "右")),
    (5, 3, Words("from right to left", "从右边移到左边"), Words("left", "左")),
    (1, 7, Words("from top to bottom", "从上面移到下面"), Words("down", "下")),
    (7, 1, Words("from bottom to top", "从下面移到上面"), Words("up", "上")),
)
_Play = Callable[[Random, Scene, Thing, Split], Event]


def event(rng: Random, canvas: int, split: Split) -> Event:
    """Returns six frames of up to three things, of which at most one does something."""
    plays: list[_Play] = [_moves, _moves, _appears, _disappears, _still]
    if canvas >= 448:
        plays.append(_resizes)
    play = rng.choice(plays)
    while True:
        scene = objects_scene(rng, canvas, split)
        if len(scene.things) > 3 or scene.things[0].size > 0.33 * canvas:
            continue
        played = play(rng, scene, rng.choice(scene.things), split)
        if all(_is_allowed(frame, split) for frame in played.frames):
            return played


def _happens(answer: Words, word: Words) -> Fact:
    return Fact("video", "happens", answer, word)


def _moves(rng: Random, scene: Scene, actor: Thing, split: Split) -> Event:
    first, last, way, direction = rng.choice(_DIRECTIONS)
    along = 1 if abs(first - last) == 2 else 3  # from a place to the next of the line
    shift = (4 - along) * rng.randrange(-1, 2)  # to one of three parallel lines
    start, end = (
        thing_at(rng, actor.look, place + shift, actor.size, scene.width) for place in (first, last)
    )
    line = range(min(first, last) + shift, max(first, last) + shift + 1, along)
    others = [thing for thing in _without(scene, actor) if place_of(thing) not in line]
    frames = [
        scene.with_things([*others, _between(start, end, index)]) for index in range(FRAME_COUNT)
    ]
    name = noun_of(actor).name
    slots = {"noun": name, "way": way, "direction": direction}
    happens = _happens(
        sentence("the {noun} moves {way}.", "{noun}{way}。", **slots), Words("moves", "移动")
    )
    moves = Fact("video", "moves", sentence("the {noun} moves.", "{noun}在移动。", noun=name), name)
    told = Words(
        f"The {name.en} moves {_towards(direction.en)}.", f"{name.zh}向{direction.zh}移动。"
    )
    goes = Fact("video", "direction", told, direction, {"noun": name})
    return Event(tuple(frames), (happens, moves, goes))


def _towards(direction: str) -> str:
    return f"to the {direction}" if direction in ("left", "right") else direction


def _between(start: Thing, end: Thing, index: int) -> Thing:
    if index in (0, FRAME_COUNT - 1):
        return start if index == 0 else end
    share = index / (FRAME_COUNT - 1)
    x = round(start.x + share * (end.x - start.x))
    y = round(start.y + share * (end.y - start.y))
    return replace(start, x=x, y=y, place=None)


def _appears(rng: Random, scene: Scene, actor: Thing, _: Split) -> Event:
    first = rng.randrange(1, FRAME_COUNT)
    without = scene.with_things(_without(scene, actor))
    frames = [scene if index >= first else without for index in range(FRAME_COUNT)]
    frame = frame_name(first)
    happens = _happens(
        sentence("{one} appears in {frame}.", "{frame}出现了{one}。", one=actor.one, frame=frame),
        Words("appears", "出现"),
    )
    noun = noun_of(actor).name
    told = sentence(
        "the {noun} appears in {frame}.", "{noun}在{frame}出现。", noun=noun, frame=frame
    )
    when = Fact("frame", "appears", told, frame, {"noun": noun})
    return Event(tuple(frames), (happens, when))


def _disappears(rng: Random, scene: Scene, actor: Thing, _: Split) -> Event:
    gone = rng.randrange(1, FRAME_COUNT)
    without = scene.with_things(_without(scene, actor))
    frames = [without if index >= gone else scene for index in range(FRAME_COUNT)]
    noun = noun_of(actor).name
    told = sentence(
        "the {noun} disappears in {frame}.",
        "{noun}在{frame}消失。",
        noun=noun,
        frame=frame_name(gone),
    )
    when = Fact("frame", "disappears", told, frame_name(gone), {"noun": noun})
    return Event(tuple(frames), (_happens(told, Words("disappears", "消失")), when))


def _resizes(rng: Random, scene: Scene, actor: Thing, _: Split) -> Event:
    grows = rng.random() < 0.5
    sizes = SIZES[:FRAME_COUNT] if grows else SIZES[FRAME_COUNT - 1 :: -1]
    # Near an edge the larger sizes would not fit: the thing keeps clear of it throughout.
    margin = max(sizes) // 2
    x, y = (
        min(max(centre, margin), side - margin)
        for centre, side in ((actor.x, scene.width), (actor.y, scene.height))
    )
    others = _without(scene, actor)
    frames = [scene.with_things([*others, replace(actor, x=x, y=y, size=size)]) for size in sizes]
    told = sentence(
        "the {noun} gets {change}.",
        "{noun}变{change}了。",
        noun=noun_of(actor).name,
        change=Words("bigger", "大") if grows else Words("smaller", "小"),
    )
    word = Words("grows", "变大") if grows else Words("shrinks", "变小")
    return Event(tuple(frames), (_happens(told, word),))


def _still(_rng: Random, scene: Scene, _actor: Thing, _: Split) -> Event:
    told = Words("Nothing changes.", "没有变化。")
    return Event((scene,) * FRAME_COUNT, (_happens(told, Words("nothing", "没有变化")),))
