"""The facts of one scene: what is where, how many, in which colour, how written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from demo_training.grammar import Fact, joined, sentence
from demo_training.lexicon import (
    CATEGORIES,
    CATEGORY_ANSWERS,
    COLOURS,
    CONCEPTS,
    DIGITS,
    NUMBERS,
    PLACE_ANSWERS,
    PLACES,
    Noun,
    Words,
)
from demo_training.scenes import Form, Scene, Sign, Thing

YES: Final = Words("Yes", "是")
NO: Final = Words("No", "否")
SIDES: Final = (
    Words("to the left of", "左边"),
    Words("to the right of", "右边"),
    Words("above", "上面"),
    Words("below", "下面"),
)
SIZE_RATIO: Final = 1.4
NOTHING: Final = Words("nothing", "什么都没有")
TEXT: Final = Words("text", "文字")
BACKGROUND: Final = Words("background", "背景")


@dataclass(frozen=True)
class View:
    """A scene as a question speaks of it.

    Attributes:
        scene: what is seen.
        picture: what the picture is called: "the image", "Image-2", "frame 3".
        scope: where to look, " in Image-2"; empty if there is only one picture.
        rivals: labels that are in sister pictures but not here, the hard cases of "is there".
    """

    scene: Scene
    picture: Words
    scope: Words
    rivals: tuple[str, ...] = ()

    @property
    def slots(self) -> dict[str, Words]:
        """What every question may use."""
        return {"picture": self.picture, "scope": self.scope}

    @property
    def labels(self) -> Counter[str]:
        """How often each label occurs."""
        return Counter(thing.label for thing in self.scene.things)

    @property
    def single_bodies(self) -> list[Thing]:
        """The things, without text, of which there is one."""
        labels = self.labels
        return [thing for thing in self.scene.bodies if labels[thing.label] == 1]

    @property
    def placed(self) -> bool:
        """Whether every thing has a place that can be named."""
        return all(thing.place is not None for thing in self.scene.things)


Asker = Callable[[Random, View], Fact | None]


def noun_of(thing: Thing) -> Noun:
    """Returns the noun of a thing that is not a sign."""
    if thing.noun is None:
        raise TypeError(f"the sign {thing.label} has no noun")
    return thing.noun


def describe(_: Random, view: View) -> Fact | None:
    """What the whole picture shows, in reading order."""
    if not view.placed:
        return None
    answer, word = description(view.scene)
    return Fact("describe", "describe", answer, word, view.slots)


def description(scene: Scene) -> tuple[Words, Words | None]:
    """Returns the sentence for a whole scene, and its list of names (None for copies)."""
    if not scene.things:
        empty = Words("There is nothing in the picture.", "图片里什么都没有。")
        return empty, Words("nothing", "什么都没有")
    counts = Counter(thing.label for thing in scene.things)
    if max(counts.values()) > 1:
        return _description_of_copies(scene, counts), None
    parts = [_part(thing) for thing in scene.things]
    names = [_name(thing) for thing in scene.things]
    listed = Words(", ".join(name.en for name in names), "、".join(name.zh for name in names))
    return sentence("there is {parts}.", "{parts}。", parts=joined(parts)), listed


def _part(thing: Thing) -> Words:
    place = PLACES[place_of(thing)]
    return Words(f"{thing.one.en} {place.en}", f"{place.zh}有{thing.one.zh}")


def _name(thing: Thing) -> Words:
    return Words(thing.label, thing.label) if thing.noun is None else thing.noun.name


def place_of(thing: Thing) -> int:
    """Returns the index of the thing's place."""
    if thing.place is None:
        raise ValueError(f"{thing.label} lies between two places")
    return thing.place


def _description_of_copies(scene: Scene, counts: Counter[str]) -> Words:
    nouns = {thing.label: noun_of(thing) for thing in scene.things}
    parts = [numbered(nouns[label], count) for label, count in counts.most_common()]
    return sentence("there are {parts}.", "有{parts}。", parts=joined(parts, zh_last="和"))


def numbered(noun: Noun, count: int) -> Words:
    """Returns "three pandas", "三只熊猫"; "one panda"; "no pandas"."""
    number = NUMBERS[count]
    name = noun.en if count == 1 else noun.plural
    return Words(f"{number.en} {name}", f"{number.zh}{noun.measure}{noun.zh}")


def at_place(rng: Random, view: View) -> Fact | None:
    """What is at a place; one in six is empty."""
    if not view.placed:
        return None
    taken = {place_of(thing): thing for thing in view.scene.things}
    free = [place for place in range(9) if place not in taken and _is_clear(view, place)]
    if free and (not taken or rng.random() < 0.17):
        return at(view, rng.choice(free), None)
    if not taken:
        return None
    place = rng.choice(list(taken))
    return at(view, place, taken[place])


def _is_clear(view: View, place: int) -> bool:
    # A line of text reaches into the corners of its row.
    rows = {place_of(thing) // 3 for thing in view.scene.signs}
    return place // 3 not in rows and not view.scene.is_large


def at(view: View, place: int, thing: Thing | None, asked: str = "at") -> Fact:
    """What is at this place: the thing, or nothing."""
    slots = view.slots | {"place": PLACES[place]}
    if thing is None:
        answer = sentence("there is nothing {place}.", "{place}什么都没有。", place=PLACES[place])
        return Fact("at", asked, answer, NOTHING, slots)
    answer = sentence(
        "there is {one} {place}.", "{place}有{one}。", one=thing.one, place=PLACES[place]
    )
    return Fact("at", asked, answer, _name(thing), slots, thing.label)


def where(rng: Random, view: View) -> Fact | None:
    """Where a thing is, or the only text."""
    signs = view.scene.signs if len(view.scene.signs) == 1 else []
    things = [thing for thing in view.single_bodies + signs if thing.place is not None]
    return where_is(view, rng.choice(things)) if things else None


def where_is(view: View, thing: Thing, asked: str = "where") -> Fact:
    """Where this thing is."""
    place = place_of(thing)
    noun = TEXT if thing.noun is None else thing.noun.name
    answer = sentence("the {noun} is {place}.", "{noun}在{place}。", noun=noun, place=PLACES[place])
    slots = view.slots | {"noun": noun}
    return Fact("where", asked, answer, PLACE_ANSWERS[place], slots, thing.label)


def count_all(_: Random, view: View) -> Fact | None:
    """How many things there are; pictures with text are left out, for text is hardly a thing."""
    if view.scene.signs:
        return None
    return all_things(view)


def all_things(view: View, asked: str = "count_all") -> Fact:
    """How many things there are."""
    noun = Noun("thing", "things", "东西", "个")
    return _count(view, noun, len(view.scene.things), asked)


def count_kind(rng: Random, view: View) -> Fact | None:
    """How many things there are of a kind, or of a category."""
    if rng.random() < 0.4:
        return count_of_category(view, rng.choice(["animal", "food", "vehicle", "plant"]))
    bodies = view.scene.bodies
    if not bodies or rng.random() < 0.1:
        return count_of(view, _absent(rng, view))
    return count_of(view, noun_of(rng.choice(bodies)))


def count_of(view: View, noun: Noun, asked: str = "count") -> Fact:
    """How many things have this name."""
    return _count(view, noun, view.labels[noun.en], asked)


def count_of_category(view: View, category: str, asked: str = "count") -> Fact:
    """How many things are of this category."""
    members = [thing for thing in view.scene.bodies if noun_of(thing).category == category]
    return _count(view, CATEGORIES[category], len(members), asked)


def _count(view: View, noun: Noun, count: int, asked: str) -> Fact:
    verb = "is" if count == 1 else "are"
    number = numbered(noun, count)
    zh = f"没有{noun.zh}。" if count == 0 else f"有{number.zh}。"
    slots = view.slots | {
        "noun": noun.name,
        "nouns": Words(noun.plural, noun.zh),
        "measure": Words("", noun.measure),
    }
    answer = Words(f"There {verb} {number.en}.", zh)
    return Fact("count", asked, answer, Words(str(count), str(count)), slots)


def exists(rng: Random, view: View) -> Fact | None:
    """Whether a thing is there: in the end yes about as often as no.

    A scene has fewer things than it lacks, so that "yes" repeats itself more and is dropped.
    """
    bodies = view.scene.bodies
    if bodies and rng.random() < 0.65:
        return is_there(view, noun_of(rng.choice(bodies)))
    if not bodies and rng.random() < 0.8:
        return None
    return is_there(view, _absent(rng, view))


def is_there(view: View, noun: Noun) -> Fact:
    """Whether a thing of this name is there."""
    slots = view.slots | {"noun": noun.name, "one": noun.one}
    count = view.labels[noun.en]
    if not count:
        answer = Words(f"No, there is no {noun.en}.", f"没有{noun.zh}。")
        return Fact("exists", "exists", answer, NO, slots)
    answer = Words(f"Yes, there is {noun.one.en}.", f"是的，有{noun.zh}。")
    return Fact("exists", "exists", answer, YES, slots, noun.en if count == 1 else None)


def _absent(rng: Random, view: View) -> Noun:
    labels = view.labels
    rivals = [noun for noun in CONCEPTS if noun.en in view.rivals and not labels[noun.en]]
    if rivals and rng.random() < 0.6:
        return rng.choice(rivals)
    return rng.choice([noun for noun in CONCEPTS if not labels[noun.en]])


def _form_counts(view: View) -> tuple[Counter[str], Counter[str]]:
    forms = [thing.look for thing in view.scene.things if isinstance(thing.look, Form)]
    shapes = Counter(form.shape.en for form in forms)
    return shapes, Counter(form.colour for form in forms)


def colour(rng: Random, view: View) -> Fact | None:
    """The colour of the background, of a shape, or of the only text."""
    shapes, _ = _form_counts(view)
    forms = [
        thing
        for thing in view.scene.things
        if isinstance(thing.look, Form) and shapes[thing.look.shape.en] == 1
    ]
    signs = view.scene.signs if len(view.scene.signs) == 1 else []
    if (forms or signs) and rng.random() < 0.75:
        return colour_of(view, rng.choice(forms + signs))
    return ground_colour(view)


def ground_colour(view: View) -> Fact:
    """The colour of the background."""
    return _coloured(view, BACKGROUND, view.scene.ground.colour, "colour", None)


def colour_of(view: View, thing: Thing, asked: str = "colour") -> Fact | None:
    """The colour of this shape or text; None for a sprite, whose colours differ by style."""
    if isinstance(thing.look, Form):
        name = thing.look.shape.name
        return _coloured(view, name, thing.look.colour, asked, thing.label)
    if isinstance(thing.look, Sign):
        return _coloured(view, TEXT, thing.look.colour, asked, thing.label)
    return None


def _coloured(view: View, noun: Words, name: str, asked: str, topic: str | None) -> Fact:
    value = Words(name, COLOURS[name])
    answer = sentence("the {noun} is {value}.", "{noun}是{value}的。", noun=noun, value=value)
    return Fact("colour", asked, answer, value, view.slots | {"noun": noun}, topic)


def shape(rng: Random, view: View) -> Fact | None:
    """The shape that has a colour."""
    _, colours = _form_counts(view)
    forms = [thing for thing in view.scene.things if isinstance(thing.look, Form)]
    single = [
        (thing, thing.look)
        for thing in forms
        if isinstance(thing.look, Form) and colours[thing.look.colour] == 1
    ]
    if not single:
        return None
    thing, look = rng.choice(single)
    value = Words(look.colour, COLOURS[look.colour])
    answer = Words(
        f"The {value.en} shape is {look.shape.one.en}.", f"{value.zh}的是{look.shape.zh}。"
    )
    slots = view.slots | {"colour": value}
    return Fact("shape", "shape", answer, look.shape.name, slots, thing.label)


def size(rng: Random, view: View) -> Fact | None:
    """Which of two things is bigger, or smaller; only where the sizes differ plainly."""
    things = sorted(view.single_bodies, key=lambda thing: thing.size)
    if len(things) < 2 or things[-1].size < SIZE_RATIO * things[0].size:
        return None
    smaller, bigger = noun_of(things[0]).name, noun_of(things[-1]).name
    adjective, winner = rng.choice(
        ((Words("bigger", "更大"), bigger), (Words("smaller", "更小"), smaller))
    )
    noun, other = rng.sample((smaller, bigger), 2)
    answer = sentence(
        "the {noun} is {adjective}.", "{noun}{adjective}。", noun=winner, adjective=adjective
    )
    slots = view.slots | {"noun": noun, "other": other, "adjective": adjective}
    return Fact("size", "size", answer, winner, slots)


def _is_beside(thing: Thing, other: Thing, side: int) -> bool:
    first, second = place_of(thing), place_of(other)
    first, second = (first % 3, second % 3) if side < 2 else (first // 3, second // 3)
    return first < second if side in (0, 2) else first > second


def relation(rng: Random, view: View) -> Fact | None:
    """Whether one thing is left of, right of, above or below another."""
    things = [thing for thing in view.single_bodies if thing.place is not None]
    if len(things) < 2:
        return None
    thing, other = rng.sample(things, 2)
    sides = [
        side
        for side in range(4)
        if _is_beside(thing, other, side) or _is_beside(other, thing, side)
    ]
    side = rng.choice(sides)
    slots = {"noun": noun_of(thing).name, "other": noun_of(other).name, "side": SIDES[side]}
    if _is_beside(thing, other, side):
        answer = sentence(
            "yes, the {noun} is {side} the {other}.", "是的，{noun}在{other}的{side}。", **slots
        )
        return Fact("relation", "relation", answer, YES, view.slots | slots)
    answer = sentence(
        "no, the {noun} is not {side} the {other}.", "不，{noun}不在{other}的{side}。", **slots
    )
    return Fact("relation", "relation", answer, NO, view.slots | slots)


def beside(rng: Random, view: View) -> Fact | None:
    """The one thing that is left of, right of, above or below another.

    Not in large pictures, where things of one column may lie far apart.
    """
    if view.scene.is_large or not view.placed or len(view.single_bodies) != len(view.scene.things):
        return None
    side = rng.randrange(4)
    things = view.single_bodies
    found = [
        (thing, other)
        for other in things
        for thing in things
        if [it for it in things if _is_beside(it, other, side)] == [thing]
    ]
    if not found:
        return None
    thing, other = rng.choice(found)
    slots = {"other": noun_of(other).name, "side": SIDES[side]}
    answer = sentence(
        "there is {one} {side} the {other}.", "{other}的{side}有{one}。", one=thing.one, **slots
    )
    name = noun_of(thing).name
    return Fact("relation", "beside", answer, name, view.slots | slots, thing.label)


def category(rng: Random, view: View) -> Fact | None:
    """What kind of thing a thing is, named or pointed at by its place."""
    things = [thing for thing in view.single_bodies if noun_of(thing).category]
    if not things:
        return None
    thing = rng.choice(things)
    if thing.place is None or rng.random() < 0.3:
        return category_of(view, thing)
    return category_of(view, thing, "category_at")


def category_of(view: View, thing: Thing, asked: str = "category") -> Fact:
    """What kind of thing this thing is."""
    answer = CATEGORY_ANSWERS[noun_of(thing).category]
    slots = view.slots | {"noun": noun_of(thing).name}
    if thing.place is not None:
        slots["place"] = PLACES[thing.place]
    word = Words(answer.en.split()[-1], answer.zh)
    told = sentence("it is {kind}.", "它是{kind}。", kind=answer)
    return Fact("category", asked, told, word, slots, thing.label)


def read(rng: Random, view: View) -> Fact | None:
    """What a text says; where there are two, the one at a place."""
    signs = view.scene.signs
    if not signs:
        return None
    if len(signs) == 1 and rng.random() < 0.7:
        return read_text(view, signs[0])
    return read_text_at(view, rng.choice(signs))


def read_text(view: View, thing: Thing) -> Fact:
    """What the only text says; digits alone are a number."""
    word = Words(thing.label, thing.label)
    if set(thing.label) <= set(DIGITS):
        answer = Words(f"The number is {word.en}.", f"数字是{word.zh}。")
        return Fact("number", "number", answer, word, view.slots, thing.label)
    return Fact("read", "read", _said(thing), word, view.slots, thing.label)


def read_text_at(view: View, thing: Thing, asked: str = "read_at") -> Fact:
    """What the text at a place says."""
    word = Words(thing.label, thing.label)
    slots = view.slots | {"place": PLACES[place_of(thing)]}
    return Fact("read", asked, _said(thing), word, slots, thing.label)


def _said(thing: Thing) -> Words:
    return Words(f'The text says "{thing.label}".', f"文字是“{thing.label}”。")


# How often each kind of question is tried. Often: what is learned last ("where", "is there",
# descriptions), and what few scenes allow (sizes, sides, shapes).
ASKERS: Final[dict[Asker, float]] = {
    describe: 2.0,
    at_place: 1.5,
    where: 1.5,
    count_all: 0.7,
    count_kind: 1.2,
    exists: 1.5,
    colour: 1.0,
    shape: 1.2,
    size: 2.0,
    relation: 1.5,
    beside: 1.0,
    category: 0.8,
    read: 5.0,
}


def facts(rng: Random, view: View, count: int) -> list[Fact]:
    """Returns up to `count` different facts of a scene."""
    askers = list(ASKERS)
    weights = list(ASKERS.values())
    found: list[Fact] = []
    for asker in rng.choices(askers, weights, k=3 * count):
        fact = asker(rng, view)
        if fact is not None and fact not in found:
            found.append(fact)
        if len(found) == count:
            break
    return found
