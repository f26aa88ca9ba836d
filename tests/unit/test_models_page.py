"""The page of models: its table is that of the facts, and names every folder once."""

from __future__ import annotations

from collections import Counter

from tests.released_models.facts import releases
from tests.released_models.page import PAGE, renewed


def test_the_table_is_that_of_the_facts() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == renewed(page), "run python -m tests.released_models"


def test_no_folder_is_listed_twice() -> None:
    folders = Counter(folder for release in releases() for folder in release.folders)
    assert set(folders.values()) == {1}
    assert len(folders) == 139
