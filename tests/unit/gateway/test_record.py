"""The stages of a request, by a clock that is moved by hand."""

from __future__ import annotations

from contextlib import suppress

import pytest

from gateway.events import EngineTimings, TextDelta, Usage
from gateway.record import Picture, RequestRecord
from gateway.services.messages import EmbeddingHeader, EmbeddingTrailer, EncodeTimings
from protos.internvl.v1 import tensor_pb2


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds


def header(*, tile_count: int = 1, cache_hit: bool = False) -> EmbeddingHeader:
    return EmbeddingHeader(
        dtype=tensor_pb2.DATA_TYPE_BF16,
        shape=(256 * tile_count, 8),
        byte_count=4096 * tile_count,
        tile_count=tile_count,
        grid_column_count=tile_count,
        grid_row_count=1,
        image_width=448,
        image_height=448,
        cache_hit=cache_hit,
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("gateway.record.time", clock)
    return clock


def test_images_wait_until_the_last_header_and_travel_from_there(clock: Clock) -> None:
    record = RequestRecord(arrival=clock.seconds, image_count=5)
    clock.seconds += 1
    record.note_start("abcde")
    with record.piping(3):
        for index, (seconds, cache_hit) in enumerate(((0.5, True), (0.25, False), (4.0, False))):
            clock.seconds += seconds
            record.note_header(index, header(tile_count=2, cache_hit=cache_hit))
        clock.seconds += 2
    clock.seconds += 3
    record.note_first_token()
    with record.timed("decode"):
        clock.seconds += 8
    assert record.stage_seconds == {
        "encode_wait": 4.75,
        "transfer": 2,
        "prefill": 3,
        "first_token": 10.75,
        "decode": 8,
    }
    counts = (record.reused_image_count, record.cached_image_count, record.encoded_image_count)
    assert counts == (2, 1, 2)
    assert record.encoded_tile_count == 4


def test_without_images_to_send_no_time_is_theirs(clock: Clock) -> None:
    record = RequestRecord(arrival=clock.seconds, image_count=1)
    clock.seconds += 4
    record.note_start("a")
    with record.piping(0):
        clock.seconds += 1
    assert record.stage_seconds == {}
    assert record.reused_image_count == 1
    clock.seconds += 2
    record.note_first_token()
    assert record.stage_seconds == {"prefill": 3, "first_token": 7}


def test_equal_pictures_have_the_facts_of_the_one_that_is_wanted() -> None:
    record = RequestRecord(image_count=4)
    record.note_start("abab")
    assert record.pictures == [Picture()] * 4
    with record.piping(1):
        record.note_header(1, header(cache_hit=True))
    sources = [picture.source for picture in record.pictures]
    assert sources == ["llm", "vision_cache", "llm", "vision_cache"]


def test_another_start_forgets_the_pictures_of_the_last() -> None:
    record = RequestRecord(image_count=1)
    for expected in ("encoded", "llm"):
        record.note_start("a")
        if expected == "encoded":
            record.note_header(0, header())
        assert [picture.source for picture in record.pictures] == [expected]


def test_the_picture_that_took_longest_in_all_tells_the_times() -> None:
    record = RequestRecord()
    slow = EncodeTimings(0.1, 0.9, 0.3)
    for timings in (EncodeTimings(1.0, 0.1, 0.1), slow, EncodeTimings(0.1, 0.1, 1.0)):
        record.note_trailer(EmbeddingTrailer(0, b"", timings))
    assert record.slowest_encode == slow


@pytest.mark.parametrize("header_count", [0, 1])
def test_a_wait_that_fails_is_a_wait(clock: Clock, header_count: int) -> None:
    record = RequestRecord(image_count=2)
    record.note_start("ab")
    with suppress(TimeoutError), record.piping(2):
        clock.seconds += 1
        for index in range(header_count):
            record.note_header(index, header())
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
        "prefill_seconds": None,
        "first_token_seconds": None,
        "decode_seconds": None,
        "image_count": 0,
        "reused_image_count": 0,
        "cached_image_count": 0,
        "encoded_image_count": 0,
        "encoded_tile_count": 0,
        "prompt_token_count": 30,
        "image_token_count": 4,
        "cached_token_count": 16,
        "output_token_count": 5,
        "model": None,
        "error": "NOT_FOUND",
        "caller": None,
        "ignored_fields": None,
    }


def test_of_several_generations_the_engines_quickest_is_told(clock: Clock) -> None:
    record = RequestRecord()
    fast = EngineTimings(0.3, 0.2)
    for timings in (None, EngineTimings(0.1, 0.9), fast, EngineTimings(0.5, 0.1), None):
        record.note_event(Usage(5, 1, 2, 0, timings))
    assert record.fastest_engine is fast
    assert "fastest_engine" not in record.costs()


def test_several_generations_are_one_request(clock: Clock) -> None:
    record = RequestRecord(arrival=clock.seconds)
    record.note_start([])
    for seconds, usage in ((1, Usage(5, 1, 2, 0)), (4, Usage(7, 3, 0, 1))):
        clock.seconds += seconds
        record.note_first_token()
        record.note_event(usage)
    assert record.stage_seconds["first_token"] == record.stage_seconds["prefill"] == 1
    costs = record.costs()
    assert costs["prompt_token_count"] == 12
    assert costs["output_token_count"] == 4
    assert costs["cached_token_count"] == 2
    assert costs["image_token_count"] == 1
