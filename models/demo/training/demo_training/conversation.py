"""Questions beyond a scene's plain facts: follow-ups, and what the model cannot know."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Final

from demo_training.grammar import Fact
from demo_training.lexicon import CATEGORIES, CONCEPTS, PLACES, Noun, Words
from demo_training.questions import (
    BACKGROUND,
    View,
    all_things,
    at,
    category_of,
    colour_of,
    count_all,
    count_of,
    count_of_category,
    describe,
    facts,
    ground_colour,
    is_there,
    noun_of,
    place_of,
    read_text_at,
    where_is,
)
from demo_training.scenes import Sign, Thing
from demo_training.small_talk import REFUSAL

# Questions that say a place, or whose answers do.
_WITH_PLACE: Final = (
    "describe", "at", "at_and", "where", "where_it", "where_and", "read_at", "category_at",
    "image_and",
)  # fmt: skip


def chain(rng: Random, views: tuple[View, ...], length: int) -> list[Fact]:
    """Returns facts of one conversation, most of them asked in the light of the one before.

    Of the task "followup" are those that nobody can answer who has missed the earlier turns: what
    is asked about "it", where the picture has more than one thing, and "And Image-2?". What names
    its thing or place ("And on the left?") counts as what it asks for.
    """
    view = views[0]
    found = facts(rng, view, 1)
    while found and len(found) < length:
        if len(views) == 2 and view is views[0] and (other := _elsewhere(views, found[-1])):
            view = views[1]
            found.append(other)
        elif (options := _follow_ups(rng, view, found[-1])) and rng.random() < 0.9:
            found.append(rng.choice(options))
        elif fresh := [fact for fact in facts(rng, view, 3) if fact not in found]:
            found.append(fresh[0])
        else:
            break
    return found


def _elsewhere(views: tuple[View, ...], fact: Fact) -> Fact | None:
    """Returns "And Image-2?" after a question about Image-1."""
    view = views[1]
    told = _asked_of(view, fact)
    return told and replace(told, asked="image_and", task="followup", slots=view.slots)


def _asked_of(view: View, fact: Fact) -> Fact | None:
    """Returns what another picture answers to a question; None if it does not fit there."""
    nouns = {noun.name: noun for noun in (*CONCEPTS, *map(noun_of, view.scene.bodies))}
    name = fact.slots.get("noun")
    noun = None if name is None else nouns.get(name)
    if fact.asked == "describe":
        return describe(Random(0), view)
    if fact.asked == "at" and view.placed:
        place = PLACES.index(fact.slots["place"])
        there = [thing for thing in view.scene.things if place_of(thing) == place]
        return at(view, place, there[0] if there else None)
    if fact.asked == "count_all":
        return count_all(Random(0), view)
    if fact.asked == "colour" and name == BACKGROUND:
        return ground_colour(view)
    if noun is not None and fact.asked in ("count", "exists"):
        return count_of(view, noun) if fact.asked == "count" else is_there(view, noun)
    return None


def _follow_ups(rng: Random, view: View, fact: Fact) -> list[Fact]:
    """Returns what can be asked next; as often about "it" as about other things."""
    options = _about_others(rng, view, fact)
    topics = [thing for thing in view.scene.things if thing.label == fact.topic]
    about_it = _about_it(view, fact, topics[0]) if len(topics) == 1 else []
    if about_it and (not options or rng.random() < 0.7):
        options = about_it
    return options


def _about_others(rng: Random, view: View, fact: Fact) -> list[Fact]:
    rest = [thing for thing in view.scene.things if thing.label != fact.topic]
    if not rest or not view.placed:
        return []
    other = rng.choice(rest)
    if fact.asked in ("at", "at_and") and fact.task == "at":
        return [at(view, place_of(other), other, "at_and")] if _is_single(view, other) else []
    if fact.asked in ("where", "where_and") and other in view.single_bodies:
        return [where_is(view, other, "where_and")]
    if fact.asked == "read_at" and isinstance(other.look, Sign):
        return [read_text_at(view, other, "at_and")]
    if fact.asked in ("count", "count_and") and not view.scene.signs:
        return [_another_count(rng, view, other), all_things(view, "count_total")]
    return []


def _is_single(view: View, thing: Thing) -> bool:
    return view.labels[thing.label] == 1


def _another_count(rng: Random, view: View, other: Thing) -> Fact:
    if rng.random() < 0.5:
        category = rng.choice([key for key in CATEGORIES if key != "object"])
        return count_of_category(view, category, "count_and")
    return count_of(view, noun_of(other), "count_and")


def _about_it(view: View, fact: Fact, thing: Thing) -> list[Fact]:
    """Returns questions about the thing just spoken of, where "it" might be another one."""
    options: list[Fact | None] = []
    is_sign = isinstance(thing.look, Sign)
    if len(view.labels) > 1 and thing.place is not None and fact.asked not in _WITH_PLACE:
        options.append(where_is(view, thing, "where_it"))
    if is_sign and len(view.scene.signs) > 1 and not fact.asked.startswith("colour"):
        options.append(colour_of(view, thing, "colour_it"))
    has_category = not is_sign and bool(noun_of(thing).category)
    if has_category and len(view.scene.bodies) > 1 and not fact.asked.startswith("category"):
        options.append(category_of(view, thing, "category_it"))
    return [replace(option, task="followup") for option in options if option is not None]


# What the model does not know.

_UNKNOWN: Final = """
    dinosaur/恐龙 unicorn/独角兽 teacher/老师 doctor/医生 river/河流 mountain/山峰 bridge/桥
    window/窗户 kangaroo/袋鼠 camel/骆驼 eagle/老鹰 lobster/龙虾 spoon/勺子 knife/刀子
    bottle/瓶子 sofa/沙发 table/桌子 mirror/镜子 printer/打印机 submarine/潜艇 truck/卡车
    scooter/滑板车 bamboo/竹子 peach/桃子 grape/葡萄 onion/洋葱 potato/土豆 noodle/面条
    sword/宝剑 violin/小提琴 trumpet/喇叭 dragon/龙 mermaid/美人鱼 lamp/台灯 door/门
    sock/袜子 jacket/夹克 ring/戒指 volcano/火山
"""
UNKNOWN_NOUNS: Final = tuple(
    Noun(en, f"{en}s", zh, "个") for en, zh in (pair.split("/") for pair in _UNKNOWN.split())
)
_ABOUT_UNKNOWN: Final = ("where", "exists", "colour", "category", "count")


def unknown_fact(rng: Random, view: View) -> Fact:
    """A question about a noun outside the model's world; one in four is no word at all."""
    noun = rng.choice(UNKNOWN_NOUNS)
    if rng.random() < 0.25:
        letters = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(4, 8)))
        noun = Noun(letters, f"{letters}s", noun.zh, "个")
    slots = view.slots | {
        "noun": noun.name,
        "nouns": Words(noun.plural, noun.zh),
        "one": noun.one,
        "measure": Words("", "个"),
    }
    return Fact("refuse", rng.choice(_ABOUT_UNKNOWN), REFUSAL, REFUSAL, slots)


def foreign_facts(rng: Random, view: View, count: int) -> list[Fact]:
    """Questions about a picture that shows nothing that the model knows."""
    asked = rng.choices(("describe", "colour", "count_all", "read", "exists"), k=count)
    slots = view.slots | {"noun": Words("cat", "猫"), "one": Words("a cat", "一只猫")}
    return [Fact("refuse", name, REFUSAL, REFUSAL, slots) for name in asked]
