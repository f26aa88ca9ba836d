"""Samples: pure functions of their arguments, in the forms that the model is asked in."""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from demo_training.grammar import WORD_SUFFIX
from demo_training.lexicon import CLASS_NAMES, COLOURS
from demo_training.samples import KIND_SHARES, Kind, Sample, make_sample

KINDS: tuple[Kind, ...] = get_args(Kind)
PICTURE_COUNTS = {"single": 1, "text": 1, "pair": 2, "video": 6, "tiles": 1, "chat": 0}


def digest(sample: Sample) -> str:
    state = hashlib.sha256(repr((sample.dialogues, sample.system)).encode())
    for picture in sample.pictures:
        state.update(picture.pixels.tobytes())
        if picture.classes is not None and picture.colours is not None:
            state.update(picture.classes.tobytes() + picture.colours.tobytes())
    return state.hexdigest()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_sample(kind: Kind) -> None:
    first = [digest(make_sample(seed, kind=kind)) for seed in range(5)]
    # In another order, so that nothing can depend on what was made before.
    second = [digest(make_sample(seed, kind=kind)) for seed in reversed(range(5))]
    assert first == second[::-1]
    assert len(set(first)) == 5


def test_samples_do_not_depend_on_the_process() -> None:
    program = (
        "from test_samples import *\n"
        "print([digest(make_sample(seed, kind=kind)) for kind in KINDS for seed in range(3)])"
    )
    expected = [digest(make_sample(seed, kind=kind)) for kind in KINDS for seed in range(3)]
    # String hashing differs between processes: no answer may hang on the order of a set.
    here = Path(__file__).parent
    path = os.pathsep.join(map(str, (here.parent, here, here.parents[3])))
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": path}
    output = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=True,
        env=environment,
        text=True,
    )
    assert output.stdout.strip() == str(expected)


def test_other_arguments_give_other_samples() -> None:
    made = [
        make_sample(1, kind="single"),
        make_sample(2, kind="single"),
        make_sample(1, kind="single", split="layouts"),
        make_sample(1, kind="single", canvas=224),
    ]
    assert len({digest(sample) for sample in made}) == 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("canvas", [224, 448])
def test_pictures_have_their_kind_s_number_and_size(kind: Kind, canvas: int) -> None:
    for seed in range(6):
        sample = make_sample(seed, kind=kind, canvas=canvas)
        assert len(sample.pictures) == PICTURE_COUNTS[kind]
        for picture in sample.pictures:
            assert picture.pixels.dtype == np.uint8
            if kind == "tiles":
                assert picture.classes is None
                assert picture.colours is None
                continue
            assert picture.classes is not None
            assert picture.colours is not None
            assert picture.pixels.shape == (canvas, canvas, 3)
            assert picture.classes.shape == picture.colours.shape == (canvas // 14, canvas // 14)
            assert picture.classes.dtype == picture.colours.dtype == np.int16
            assert 0 <= picture.classes.min() <= picture.classes.max() < len(CLASS_NAMES)
            assert 0 <= picture.colours.min() <= picture.colours.max() <= len(COLOURS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_question_alone_holds_the_places(kind: Kind) -> None:
    for seed in range(30):
        for dialogue in make_sample(seed, kind=kind, canvas=224).dialogues:
            counts = [turn.question.count("<image>") for turn in dialogue]
            assert counts == [PICTURE_COUNTS[kind]] + [0] * (len(dialogue) - 1)


@pytest.mark.parametrize("kind", KINDS)
def test_turns_are_whole(kind: Kind) -> None:
    for seed in range(40):
        for dialogue in make_sample(seed, kind=kind, canvas=224).dialogues:
            assert len({turn.language for turn in dialogue}) == 1
            for turn in dialogue:
                assert turn.answer
                assert "{" not in turn.question + turn.answer
                assert (WORD_SUFFIX[turn.language] in turn.question) == (turn.form == "word")


def test_a_sentence_is_in_the_language_of_its_question() -> None:
    for kind in ("single", "pair", "video", "chat"):
        for seed in range(30):
            for dialogue in make_sample(seed, kind=kind, canvas=224).dialogues:
                for turn in dialogue:
                    if turn.form == "sentence":
                        assert turn.answer.endswith(
                            (".", "!") if turn.language == "en" else ("。", "！")
                        )


def test_every_task_has_both_languages_and_forms() -> None:
    seen = Counter(
        (turn.task, turn.language, turn.form)
        for kind in KINDS
        for seed in range(200)
        # Small canvases are quicker, but have no two sizes to compare.
        for dialogue in make_sample(
            seed, kind=kind, canvas=448 if kind == "single" else 224
        ).dialogues
        for turn in dialogue
    )
    tasks = {task for task, _, _ in seen}
    assert tasks == {
        "describe", "at", "where", "count", "exists", "colour", "shape", "size", "relation",
        "category", "read", "number", "difference", "which", "same", "video", "frame", "followup",
        "chat", "refuse",
    }  # fmt: skip
    for task in tasks - {"chat"}:
        for language in ("en", "zh"):
            for form in ("sentence", "word"):
                assert seen[task, language, form] > 0, (task, language, form)


def test_without_a_kind_all_kinds_come() -> None:
    counts = Counter(len(make_sample(seed, canvas=224).pictures) for seed in range(150))
    assert set(counts) == {0, 1, 2, 6}
    assert sum(KIND_SHARES.values()) == pytest.approx(1)


def test_a_pair_told_to_be_the_same_is_the_same() -> None:
    answers = set()
    for seed in range(80):
        sample = make_sample(seed, kind="pair", split="layouts", canvas=224)
        first, second = (picture.pixels for picture in sample.pictures)
        for turn in (dialogue[0] for dialogue in sample.dialogues):
            if turn.task == "same":
                identical = np.array_equal(first, second)
                assert turn.answer.startswith(("Yes", "是") if identical else ("No", "不", "否"))
                answers.add(identical)
    assert answers == {True, False}
