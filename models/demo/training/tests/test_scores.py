"""The scores' shares and table."""

from __future__ import annotations

from demo_training.scores import Scores


def scores() -> Scores:
    counted = Scores()
    counted.add(("count", "en", "word"), True)
    counted.add(("count", "zh", "word"), False)
    counted.add(("where", "en", "sentence"), True)
    return counted


def test_shares_are_per_cent_of_the_matching_questions() -> None:
    assert scores().share() == 100 * 2 / 3
    assert scores().share("count") == 50
    assert scores().share("count", language="zh") == 0
    assert scores().share(form="sentence") == 100


def test_questions_are_counted_by_task_and_language() -> None:
    assert scores().asked() == 3
    assert scores().asked("count") == 2
    assert scores().asked("count", "zh") == 1
    assert scores().asked("where", "zh") == 0


def test_a_share_of_nothing_is_none() -> None:
    assert scores().share("where", language="zh") is None
    assert Scores().share() is None


def test_table_has_a_line_for_each_task_and_all() -> None:
    lines = scores().table().splitlines()
    assert lines[1].split() == ["count", "2", "50.0", "100.0", "0.0", "-", "50.0"]
    assert lines[2].split() == ["where", "1", "100.0", "100.0", "-", "100.0", "-"]
    assert lines[3].split() == ["all", "3", "66.7", "100.0", "0.0", "100.0", "50.0"]
