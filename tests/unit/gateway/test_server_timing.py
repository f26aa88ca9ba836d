"""Server-Timing's value: its order, its numbers, and that everybody's parser can read it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.events import EngineTimings
from gateway.record import STAGES, RequestRecord
from gateway.server_timing import (
    HEADER,
    MAX_HEADER_IMAGE_COUNT,
    is_told,
    timing_comment,
    timing_header,
)
from gateway.services.messages import EmbeddingHeader, EncodeTimings
from gateway.settings import Settings
from protos.internvl.v1 import tensor_pb2
from tests.server_timings import told, told_by_stream

DONE = b"data: [DONE]\n\n"
CUT = EmbeddingHeader(
    dtype=tensor_pb2.DATA_TYPE_BF16,
    shape=(7 * 256, 8),
    byte_count=7 * 4096,
    tile_count=7,
    grid_column_count=3,
    grid_row_count=2,
    image_width=1200,
    image_height=800,
    cache_hit=False,
)
ONE_TILE = replace(
    CUT, tile_count=1, grid_column_count=1, grid_row_count=1, image_width=448, image_height=448
)


def record_of(*headers: EmbeddingHeader | None) -> RequestRecord:
    record = RequestRecord()
    record.note_start(range(len(headers)))
    for picture, header in zip(record.pictures, headers, strict=True):
        picture.header = header
    return record


def test_the_value_is_as_documented() -> None:
    record = record_of(CUT, None, replace(ONE_TILE, cache_hit=True))
    record.stage_seconds = {
        "decode": 0.9003,
        "first_token": 0.38012,
        "prefill": 0.06,
        "transfer": 0.0081,
        "encode_wait": 0.31,
        "fetch": 0.0012,
        "body": 0.0004,
    }
    record.slowest_encode = EncodeTimings(0.0111, 0.0002, 0.2905)
    record.fastest_engine = EngineTimings(0.0021, 0.0562)
    value, _, total = timing_header(record)[HEADER].partition(" total;dur=")
    assert value == (
        "body;dur=0.4, fetch;dur=1.2, encode_wait;dur=310.0, preprocess;dur=11.1, queue;dur=0.2,"
        " forward;dur=290.5, transfer;dur=8.1, prefill;dur=60.0, llm_queue;dur=2.1,"
        " llm_prefill;dur=56.2, first_token;dur=380.1, decode;dur=900.3,"
    )
    assert total.partition(", ")[2] == (
        'image-1;desc="encoded 3x2+1 1200x800", image-2;desc="llm",'
        ' image-3;desc="vision_cache 1x1 448x448"'
    )


@pytest.mark.parametrize(
    ("header", "description"),
    [
        (None, "llm"),
        (CUT, "encoded 3x2+1 1200x800"),
        (replace(CUT, tile_count=6), "encoded 3x2 1200x800"),  # a checkpoint without thumbnails
        (ONE_TILE, "encoded 1x1 448x448"),
        (replace(CUT, cache_hit=True), "vision_cache 3x2+1 1200x800"),
    ],
)
def test_a_picture_has_its_source_its_grid_and_its_size(
    header: EmbeddingHeader | None, description: str
) -> None:
    assert told(timing_header(record_of(header))[HEADER]).images == [description]


def test_stages_that_did_not_happen_are_left_out() -> None:
    found = told(timing_header(record_of())[HEADER])
    assert list(found.stages) == ["total"]
    assert found.images == []


def test_every_stage_is_told() -> None:
    record = record_of()
    record.stage_seconds = dict.fromkeys(STAGES, 123.4567)
    stages = told(timing_header(record)[HEADER]).stages
    assert set(STAGES) < set(stages)
    assert stages["prefill"] == 123456.7


def test_a_head_does_not_grow_with_the_pictures_and_a_comment_names_all() -> None:
    record = record_of(*[CUT] * 300)
    value = timing_header(record)[HEADER]
    assert len(told(value).images) == MAX_HEADER_IMAGE_COUNT
    assert len(value) < 2048
    assert len(told_by_stream(timing_comment(record) + DONE).images) == 300


@pytest.mark.parametrize(
    ("options", "asking", "expected"),
    [
        ({}, None, False),
        ({}, "1", True),
        ({}, "0", False),
        ({"page": False}, "1", False),
        ({"server_timing": True}, None, True),
        ({"server_timing": True, "page": False}, None, True),
    ],
)
def test_who_is_told(options: dict[str, bool], asking: str | None, expected: bool) -> None:
    headers = {} if asking is None else {"x-internvl-server-timing": asking}
    assert is_told(Settings.model_validate(options), headers) is expected
