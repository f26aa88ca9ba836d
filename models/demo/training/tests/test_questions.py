"""Answers, checked against the scenes by other means than those that made them."""

import re
from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from demo_training.changes import FRAME_COUNT, change, event, same, which
from demo_training.conversation import chain, foreign_facts, unknown_fact
from demo_training.grammar import Fact, ask
from demo_training.lexicon import (
    CATEGORIES,
    COLOURS,
    CONCEPTS,
    NUMBERS,
    PLACE_ANSWERS,
    PLACES,
    SHAPES,
    Language,
    Words,
)
from demo_training.questions import View, describe, facts
from demo_training.samples import KIND_SHARES, make_sample
from demo_training.scenes import (
    Emoji,
    Form,
    Ground,
    Scene,
    Sign,
    Thing,
    detail_scene,
    single_scene,
    text_scene,
)
from demo_training.small_talk import REFUSAL, TOPICS, small_talk
from demo_training.wordings import FRAMES, QUESTIONS, SENTENCE_FRAMES

GROUND = Ground("blue", (50, 90, 220))
PANDA, FOX, CIRCLE = CONCEPTS[0], CONCEPTS[1], SHAPES[0]
FEW: Scene = Scene(
    448,
    448,
    GROUND,
    (
        Thing(Emoji(PANDA, "noto"), 75, 75, 64, 0),
        Thing(Emoji(FOX, "noto"), 373, 224, 120, 5),
        Thing(Form(CIRCLE, "red", (220, 40, 40)), 224, 373, 64, 7),
    ),
)


def view_of(scene: Scene) -> View:
    return View(scene, Words("the picture", "图片"), Words("", ""))


def single_facts(count: int) -> list[tuple[Scene, Fact]]:
    rng = Random(5)
    found = []
    for index in range(count):
        draw = (single_scene, text_scene)[index % 2]
        scene = detail_scene(rng, "train") if index % 5 == 4 else draw(rng, 448, "train")
        found += [(scene, fact) for fact in facts(rng, view_of(scene), 6)]
    return found


def things_named(scene: Scene, name: str) -> list[Thing]:
    return [thing for thing in scene.bodies if thing.noun is not None and thing.noun.en == name]


def at(scene: Scene, place: Words) -> list[Thing]:
    return [thing for thing in scene.things if thing.place == PLACES.index(place)]


# One independent check for each key of a question: does the one word answer it truly?


def check_describe(scene: Scene, fact: Fact) -> bool:
    counts = Counter(thing.label for thing in scene.things)
    text = fact.sentence.en.lower()
    if not scene.things:
        return "nothing" in text
    if max(counts.values()) == 1:
        return all(f"{t.one.en} {PLACES[t.place or 0].en}".lower() in text for t in scene.things)
    nouns = {thing.label: thing.noun for thing in scene.things if thing.noun is not None}
    return all(
        f"{NUMBERS[count].en} {nouns[label].en if count == 1 else nouns[label].plural}" in text
        for label, count in counts.items()
    )


def check_at(scene: Scene, fact: Fact) -> bool:
    assert fact.word is not None
    found = at(scene, fact.slots["place"])
    if not found:
        return fact.word.en == "nothing" and "nothing" in fact.sentence.en
    return [thing.label for thing in found] == [fact.word.en]


def check_where(scene: Scene, fact: Fact) -> bool:
    assert fact.word is not None
    place = PLACE_ANSWERS.index(fact.word)
    name = fact.slots["noun"].en
    (thing,) = scene.signs if name == "text" else things_named(scene, name)
    return thing.place == place and PLACES[place].zh in fact.sentence.zh


def check_count(scene: Scene, fact: Fact) -> bool:
    name = fact.slots["noun"].en
    members = {key for key, noun in CATEGORIES.items() if noun.en == name}
    if members:
        found = [t for t in scene.bodies if t.noun is not None and t.noun.category in members]
    else:
        found = list(scene.things) if name == "thing" else things_named(scene, name)
    assert fact.word is not None
    said = NUMBERS[len(found)].en in fact.sentence.en
    return fact.word.en == str(len(found)) and said


def check_exists(scene: Scene, fact: Fact) -> bool:
    assert fact.word is not None
    there = bool(things_named(scene, fact.slots["noun"].en))
    negated = "no " in fact.sentence.en and "没有" in fact.sentence.zh
    return fact.word.en == ("Yes" if there else "No") and negated != there


def check_colour(scene: Scene, fact: Fact) -> bool:
    assert fact.word is not None
    name = fact.slots["noun"].en
    if name == "background":
        colours = [scene.ground.colour]
    elif name == "text":
        colours = [thing.look.colour for thing in scene.signs if isinstance(thing.look, Sign)]
    else:
        looks = [thing.look for thing in scene.things]
        colours = [
            look.colour for look in looks if isinstance(look, Form) and look.shape.en == name
        ]
    return colours == [fact.word.en] and COLOURS[fact.word.en] in fact.sentence.zh


def check_shape(scene: Scene, fact: Fact) -> bool:
    assert fact.word is not None
    colour = fact.slots["colour"].en
    looks = [thing.look for thing in scene.things if isinstance(thing.look, Form)]
    return [look.shape.en for look in looks if look.colour == colour] == [fact.word.en]


def check_size(scene: Scene, fact: Fact) -> bool:
    assert fact.word is not None
    (first,), (second,) = (things_named(scene, fact.slots[key].en) for key in ("noun", "other"))
    big, small = (first, second) if first.size > second.size else (second, first)
    wanted = big if fact.slots["adjective"].en == "bigger" else small
    return wanted.label == fact.word.en and big.size >= 1.4 * small.size


def is_on_side(thing: Thing, other: Thing, side: str) -> bool:
    """By more than half a cell of a picture of 448 pixels."""
    right, down = thing.x - other.x, thing.y - other.y
    distance = {"to the left of": -right, "to the right of": right, "above": -down, "below": down}
    return distance[side] > 448 / 6


def check_relation(scene: Scene, fact: Fact) -> bool:
    assert fact.word is not None
    (thing,), (other,) = (things_named(scene, fact.slots[key].en) for key in ("noun", "other"))
    return (fact.word.en == "Yes") == is_on_side(thing, other, fact.slots["side"].en)


def check_beside(scene: Scene, fact: Fact) -> bool:
    assert fact.word is not None
    (other,) = things_named(scene, fact.slots["other"].en)
    side = fact.slots["side"].en
    return [t.label for t in scene.things if is_on_side(t, other, side)] == [fact.word.en]


def check_category(scene: Scene, fact: Fact) -> bool:
    (thing,) = things_named(scene, fact.slots["noun"].en)
    assert thing.noun is not None
    return thing.noun.category in fact.sentence.en


def check_category_at(scene: Scene, fact: Fact) -> bool:
    (thing,) = at(scene, fact.slots["place"])
    assert thing.noun is not None
    return thing.noun.category in fact.sentence.en


def check_read(scene: Scene, fact: Fact) -> bool:
    assert fact.word is not None
    signs = scene.signs if "place" not in fact.slots else at(scene, fact.slots["place"])
    return [sign.label for sign in signs] == [fact.word.en] and fact.word.zh in fact.sentence.zh


CHECKS = {
    "describe": check_describe,
    "at": check_at,
    "where": check_where,
    "count": check_count,
    "count_all": check_count,
    "exists": check_exists,
    "colour": check_colour,
    "shape": check_shape,
    "size": check_size,
    "relation": check_relation,
    "beside": check_beside,
    "category": check_category,
    "category_at": check_category_at,
    "read": check_read,
    "read_at": check_read,
    "number": check_read,
}


def test_every_answer_about_a_scene_is_true() -> None:
    seen = Counter[str]()
    for scene, fact in single_facts(600):
        assert CHECKS[fact.asked](scene, fact), (fact, scene)
        seen[fact.asked] += 1
    assert set(seen) == set(CHECKS)
    assert min(seen.values()) >= 20, seen


def test_yes_and_no_are_balanced() -> None:
    words = Counter(
        (fact.task, fact.word.en)
        for _, fact in single_facts(900)
        if fact.word is not None and fact.word.en in ("Yes", "No")
    )
    for task in ("exists", "relation"):
        share = words[task, "Yes"] / (words[task, "Yes"] + words[task, "No"])
        assert 0.35 < share < 0.65, (task, share)


def test_a_description_reads_like_one() -> None:
    fact = describe(Random(0), view_of(FEW))
    assert fact is not None
    assert fact.sentence == (
        "There is a panda in the top left, a fox on the right and a red circle at the bottom.",
        "左上角有一只熊猫，右边有一只狐狸，下方有一个红色圆形。",
    )
    assert fact.word == ("panda, fox, red circle", "熊猫、狐狸、红色圆形")


def test_copies_are_described_by_their_number() -> None:
    pandas = [Thing(Emoji(PANDA, "noto"), 75, 75, 64, place) for place in (0, 1)]
    fox = Thing(Emoji(FOX, "noto"), 75, 75, 64, 4)
    fact = describe(Random(0), view_of(Scene(448, 448, GROUND, (*pandas, fox))))
    assert fact is not None
    assert fact.sentence == ("There are two pandas and one fox.", "有两只熊猫和一只狐狸。")
    assert fact.word is None


def test_a_moving_thing_has_no_place() -> None:
    moving = Scene(448, 448, GROUND, (Thing(Emoji(PANDA, "noto"), 150, 75, 64, None),))
    view = view_of(moving)
    for seed in range(50):
        asked = {fact.asked for fact in facts(Random(seed), view, 6)}
        assert not asked & {"describe", "at", "where", "relation", "beside", "category_at"}


def test_differences_are_true() -> None:
    rng = Random(6)
    words = Counter[str]()
    for _ in range(200):
        made = change(rng, 448, "train")
        before, after = (
            {(thing.label, thing.place) for thing in scene.things}
            for scene in (made.before, made.after)
        )
        told = made.fact.sentence.en
        assert made.fact.word is not None
        names = {label for label, _ in before ^ after}
        if "replaced" in told:
            assert len(before - after) == len(after - before) == 1
            assert {name for name in names if name in told} == names
            words["replaced"] += 1
        elif "also" in told:
            assert before < after
            assert made.fact.word.en in names
            words["added"] += 1
        elif "missing" in told:
            assert after < before
            assert made.fact.word.en in names
            words["removed"] += 1
        elif "moved" in told:
            assert {made.fact.word.en} == names
            ((_, place),) = after - before
            assert place is not None
            assert PLACES[place].en in told
            words["moved"] += 1
        elif "background" in told:
            assert before == after
            assert f"{made.before.ground.colour} to {made.after.ground.colour}" in told
            words["ground"] += 1
        elif "same" in told:
            assert made.before == made.after
            words["same"] += 1
        else:
            ((label, _),) = after - before
            assert label.startswith(made.fact.word.en)
            words["recoloured"] += 1
    assert len(words) == 7, words


def test_which_picture_and_whether_they_are_the_same() -> None:
    rng = Random(7)
    words = Counter[str]()
    for _ in range(300):
        made = change(rng, 448, "train")
        fact = which(rng, made.before, made.after, "train")
        has = [
            bool(things_named(scene, fact.slots["noun"].en)) for scene in (made.before, made.after)
        ]
        assert fact.word is not None
        wanted = {(True, True): "both", (False, False): "neither", (True, False): "Image-1"}
        assert fact.word.en == wanted.get((has[0], has[1]), "Image-2")
        words[fact.word.en] += 1
        told = same(made.before, made.after).word
        assert told is not None
        assert told.en == ("Yes" if made.before == made.after else "No")
    assert set(words) == {"both", "neither", "Image-1", "Image-2"}


def labels_by_frame(frames: tuple[Scene, ...]) -> list[set[str]]:
    return [{thing.label for thing in frame.things} for frame in frames]


def actor_in(frame: Scene, name: str) -> Thing:
    (thing,) = things_named(frame, name)
    return thing


def check_event(frames: tuple[Scene, ...], told: str) -> str:
    """Checks what a sentence says against the frames, and returns its verb."""
    labels = labels_by_frame(frames)
    if told == "Nothing changes.":
        assert len({id(frame) for frame in frames}) == 1
        return "nothing"
    if match := re.fullmatch(r"An? (.+) appears in frame (\d)\.", told):
        first = int(match[2]) - 1
        assert [match[1] in frame for frame in labels] == [i >= first for i in range(6)]
        return "appears"
    if match := re.fullmatch(r"The (.+) disappears in frame (\d)\.", told):
        gone = int(match[2]) - 1
        assert [match[1] in frame for frame in labels] == [i < gone for i in range(6)]
        return "disappears"
    if match := re.fullmatch(r"The (.+) gets (bigger|smaller)\.", told):
        sizes = [actor_in(frame, match[1]).size for frame in frames]
        assert sizes == sorted(set(sizes), reverse=match[2] == "smaller")
        return match[2]
    match = re.fullmatch(r"The (.+) moves from (\w+) to (\w+)\.", told)
    assert match is not None, told
    start, end = actor_in(frames[0], match[1]), actor_in(frames[-1], match[1])
    shift = {"right": end.x - start.x, "left": start.x - end.x}
    shift |= {"bottom": end.y - start.y, "top": start.y - end.y}
    assert shift[match[3]] > 200
    return "moves"


def test_events_happen_as_told() -> None:
    rng = Random(8)
    verbs = Counter[str]()
    for _ in range(200):
        played = event(rng, 448, "train")
        assert len(played.frames) == FRAME_COUNT
        verb = check_event(played.frames, played.facts[0].sentence.en)
        verbs[verb] += 1
    assert set(verbs) == {"nothing", "appears", "disappears", "bigger", "smaller", "moves"}


def test_a_moving_thing_meets_no_other() -> None:
    rng = Random(9)
    for _ in range(150):
        played = event(rng, 448, "train")
        for frame in played.frames:
            places = [thing.place for thing in frame.things if thing.place is not None]
            assert len(places) == len(set(places))


def test_follow_ups_are_true_of_the_scene() -> None:
    rng = Random(10)
    asked = Counter[str]()
    for index in range(600):
        draw = text_scene if index % 3 == 0 else single_scene
        scene = draw(rng, 448, "train")
        for fact in chain(rng, (view_of(scene),), 5)[1:]:
            if not fact.asked.endswith(("_it", "_and", "_total")):
                continue
            asked[fact.asked] += 1
            if fact.asked == "where_it":
                assert fact.word == PLACE_ANSWERS[place_of_topic(scene, fact)]
            elif fact.asked == "colour_it":
                (thing,) = [thing for thing in scene.signs if thing.label == fact.topic]
                assert isinstance(thing.look, Sign)
                assert fact.word is not None
                assert fact.word.en == thing.look.colour
            elif fact.asked == "where_and":
                assert check_where(scene, fact)
            elif fact.asked == "at_and":
                assert check_at(scene, fact)
            elif fact.asked.startswith("count_"):
                assert check_count(scene, fact)
            else:
                assert fact.asked == "category_it"
                assert check_category(scene, fact)
    assert set(asked) == {
        "where_it", "where_and", "at_and", "count_and", "count_total", "category_it", "colour_it"
    }  # fmt: skip


def place_of_topic(scene: Scene, fact: Fact) -> int:
    (place,) = [thing.place for thing in scene.things if thing.label == fact.topic]
    assert place is not None
    return place


def test_a_follow_up_cannot_be_answered_without_the_turn_before() -> None:
    rng = Random(13)
    count = 0
    for _ in range(300):
        scene = single_scene(rng, 448, "train")
        linked = chain(rng, (view_of(scene),), 4)
        for fact in linked:
            assert (fact.task == "followup") == fact.asked.endswith("_it")
            if fact.task == "followup":
                assert len({thing.label for thing in scene.things}) > 1
                count += 1
    assert count > 50


def test_and_the_other_image_asks_the_same_of_it() -> None:
    rng = Random(14)
    before = Counter[str]()
    for _ in range(500):
        scenes = [single_scene(rng, 448, "train") for _ in range(2)]
        views = (view_of(scenes[0]), view_of(scenes[1]))
        linked = chain(rng, views, 2)
        if len(linked) < 2 or linked[1].asked != "image_and":
            continue
        first, second = linked
        before[first.asked] += 1
        slots = {name: words for name, words in first.slots.items() if name not in views[1].slots}
        again = replace(second, asked=first.asked, slots={**second.slots, **slots})
        assert CHECKS[first.asked](scenes[1], again)
    assert set(before) == {"describe", "at", "count", "count_all", "exists", "colour"}


def test_it_stands_for_the_thing_of_the_turn_before() -> None:
    rng = Random(11)
    count = 0
    for _ in range(300):
        scene = single_scene(rng, 448, "train")
        linked = chain(rng, (view_of(scene),), 4)
        for before, fact in zip(linked, linked[1:], strict=False):
            if fact.asked.endswith("_it"):
                assert before.topic == fact.topic is not None
                count += 1
    assert count > 50


def test_unknown_things_and_pictures_are_refused() -> None:
    rng = Random(12)
    view = view_of(FEW)
    known = {noun.en for noun in (*CONCEPTS, *SHAPES, *CATEGORIES.values())}
    for fact in [unknown_fact(rng, view) for _ in range(50)]:
        assert fact.slots["noun"].en not in known
        assert fact.sentence == fact.word == REFUSAL
    assert {fact.sentence for fact in foreign_facts(rng, view, 4)} == {REFUSAL}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_held_out_wordings_are_asked_only_when_wanted(language: Language) -> None:
    fact = Fact("describe", "describe", Words("a", "b"), None, view_of(FEW).slots)
    wordings = QUESTIONS["describe"][language]
    asked = {
        ask(Random(seed), fact, language, "sentence", held_out=True).question for seed in range(40)
    }
    assert len(asked) == len(wordings.held_out) == 1
    for seed in range(300):
        assert ask(Random(seed), fact, language, "sentence", held_out=False).question not in asked


# What each slot may hold, narrowly enough that a wording is not taken for another.
SLOTS: dict[Language, dict[str, str]] = {
    "en": {
        "picture": r"(?:th(?:e|is) (?:picture|image)|Image-\d|the \w+ image|[Ff]rame-?\s?\d)",
        "place": "(?:{})".format("|".join(place.en for place in PLACES)),
        "scope": r"(?: in [\w -]+)?",
        "side": "(?:to the left of|to the right of|above|below)",
    },
    "zh": {
        "picture": "(?:图片|这张图|这幅图|图|第.张图|第.帧)",
        "place": "(?:{})".format("|".join(place.zh for place in PLACES)),
        "scope": "(?:[图这第][^，。？]{0,3}[里中])?",
        "side": "[左右上下][边面]",
    },
}


def pattern_of(template: str, language: Language) -> str:
    parts = re.split(r"\{(\w+)\}", template)
    texts = [re.escape(text) for text in parts[::2]]
    slots = [SLOTS[language].get(name, r"[\w ]+") for name in parts[1::2]]
    return "".join(a + b for a, b in zip(texts, [*slots, ""], strict=True))


def test_training_never_asks_in_a_held_out_wording() -> None:
    patterns = {
        language: re.compile(
            "|".join(
                pattern_of(text, language)
                for wordings in QUESTIONS.values()
                for text in wordings[language].held_out
            ),
            re.IGNORECASE,
        )
        for language in ("en", "zh")
    }
    counts = Counter[bool]()
    for split in ("train", "phrasing"):
        for kind in KIND_SHARES:
            for seed in range(60):
                for turns in make_sample(seed, kind=kind, split=split, canvas=224).dialogues:
                    for turn in turns:
                        question = turn.question.replace("<image>", "").splitlines()
                        found = any(map(patterns[turn.language].fullmatch, question))
                        assert not (found and split == "train"), turn.question
                        counts[found] += 1
    assert counts[True] > 500


def test_no_wording_is_there_twice() -> None:
    for language in ("en", "zh"):
        for asked, wordings in QUESTIONS.items():
            texts = [*wordings[language].known, *wordings[language].held_out]
            assert len(set(texts)) == len(texts), (asked, language)


def test_every_slot_of_every_question_is_known() -> None:
    slots = {
        "picture", "scope", "place", "noun", "nouns", "measure", "one", "other", "side", "colour",
        "adjective",
    }  # fmt: skip
    for asked, wordings in QUESTIONS.items():
        for language in ("en", "zh"):
            known, held_out = wordings[language].known, wordings[language].held_out
            for text in (*known, *held_out):
                assert set(re.findall(r"\{(\w+)\}", text)) <= slots
            assert len(known) >= 3
            assert bool(held_out) != asked.endswith(("_it", "_and", "_total"))
    for frames in (FRAMES, SENTENCE_FRAMES):
        assert all("{question}" in frame for language in frames for frame in frames[language])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_small_talk_keeps_its_held_out_questions(language: Language) -> None:
    kept = {topic.en[-1] if language == "en" else topic.zh[-1] for topic in TOPICS}
    for seed in range(60):
        trained = small_talk(Random(seed), language, held_out=False)
        assert not {turn.question for turn in trained} & kept
        assert {turn.question for turn in small_talk(Random(seed), language, held_out=True)} <= kept
