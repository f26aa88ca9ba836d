"""Lines that somebody could cause again and again."""

from __future__ import annotations

import time

import pytest

from protos.process.rarely import Rarely


def test_each_event_is_let_through_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    line = Rarely(2.0)
    assert [line.lets("a"), line.lets("a"), line.lets("b"), line.lets("b")] == [True, False] * 2
    now = 101.9
    assert not line.lets("a")
    now = 102.0
    assert [line.lets("a"), line.lets("a")] == [True, False]
