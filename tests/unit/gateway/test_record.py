"""The stages of a request, by a clock that is moved by hand."""

from __future__ import annotations

from contextlib import suppress

import pytest

from gateway.events import TextDelta, Usage
from gateway.record import RequestRecord


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("gateway.record.time", clock)
    return clock


def test_images_wait_until_the_last_header_and_travel_from_there(clock: Clock) -> None:
    record = RequestRecord(arrival=clock.seconds, image_count=5)
    clock.seconds += 1
    with record.piping(3):
        for seconds, cache_hit in ((0.5, True), (0.25, False), (4.0, False)):
            clock.seconds += seconds
            record.note_header(2, cache_hit=cache_hit)
        clock.seconds += 2
    clock.seconds += 3
    record.note_first_token()
    assert record.stage_seconds == {"encode_wait": 4.75, "transfer": 2, "first_token": 10.75}
    counts = (record.reused_image_count, record.cached_image_count, record.encoded_image_count)
    assert counts == (2, 1, 2)
    assert record.encoded_tile_count == 4


def test_without_images_to_send_no_time_is_theirs(clock: Clock) -> None:
    record = RequestRecord(image_count=1)
    with record.piping(0):
        clock.seconds += 1
    assert record.stage_seconds == {}
    assert record.reused_image_count == 1


@pytest.mark.parametrize("header_count", [0, 1])
def test_a_wait_that_fails_is_a_wait(clock: Clock, header_count: int) -> None:
    record = RequestRecord(image_count=2)
    with suppress(TimeoutError), record.piping(2):
        clock.seconds += 1
        for _ in range(header_count):
            record.note_header(1, cache_hit=False)
        clock.seconds += 9
        raise TimeoutError
    assert record.stage_seconds == {"encode_wait": 10}


def test_a_stage_that_fails_has_its_time(clock: Clock) -> None:
    record = RequestRecord()
    with suppress(ConnectionError), record.timed("fetch"):
        clock.seconds += 7
        raise ConnectionError
    assert record.stage_seconds == {"fetch": 7}


def test_the_line_names_all_stages_and_no_clock(clock: Clock) -> None:
    record = RequestRecord(error="NOT_FOUND")
    with record.timed("body"):
        clock.seconds += 1
    record.note_event(TextDelta(0, "text"))
    record.note_event(Usage(30, 5, 16, 4))
    assert record.costs() == {
        "body_seconds": 1,
        "fetch_seconds": None,
        "encode_wait_seconds": None,
        "transfer_seconds": None,
        "first_token_seconds": None,
        "image_count": 0,
        "reused_image_count": 0,
        "cached_image_count": 0,
        "encoded_image_count": 0,
        "encoded_tile_count": 0,
        "prompt_token_count": 30,
        "image_token_count": 4,
        "cached_token_count": 16,
        "output_token_count": 5,
        "error": "NOT_FOUND",
        "ignored_fields": None,
    }
