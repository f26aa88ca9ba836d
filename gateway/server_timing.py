"""Server-Timing (W3C): where a request's time went and its pictures came from, for its client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gateway.record import Picture, RequestRecord
from gateway.settings import Settings

HEADER = "Server-Timing"
# A request that has it, of the value 1, is told.
ASKING_HEADER = "x-internvl-server-timing"
# Proxies and clients take heads of 4 or 8 KiB; a picture has some 45 bytes in it. A stream's
# comment tells of all pictures.
MAX_HEADER_IMAGE_COUNT = 32
# `encode_wait` holds the next three, `prefill` the next two.
ORDER = (
    *("body", "fetch", "encode_wait", "preprocess", "queue", "forward", "transfer"),
    *("prefill", "llm_queue", "llm_prefill", "first_token", "decode", "total"),
)


def is_told(settings: Settings, request_headers: Mapping[str, str]) -> bool:
    """Returns whether the client of a request is told."""
    asks = request_headers.get(ASKING_HEADER) == "1"
    return settings.server_timing or (settings.page and asks)


def timing_header(record: RequestRecord) -> dict[str, str]:
    """Returns what the head of a whole answer has besides."""
    return {HEADER: _value(record, record.pictures[:MAX_HEADER_IMAGE_COUNT])}


def timing_comment(record: RequestRecord) -> bytes:
    """Returns the comment that a stream has before its end: its head came before the facts."""
    return f": server-timing: {_value(record, record.pictures)}\n\n".encode()


def _value(record: RequestRecord, pictures: Sequence[Picture]) -> str:
    images = (f'image-{number};desc="{_told(one)}"' for number, one in enumerate(pictures, 1))
    return ", ".join([*_durations(record), *images])


def _durations(record: RequestRecord) -> Iterator[str]:
    """Yields the stages that there were, in milliseconds."""
    seconds: dict[str, float] = dict(record.stage_seconds.items())
    seconds["total"] = record.elapsed()
    if record.slowest_encode.total_seconds:
        seconds["preprocess"] = record.slowest_encode.preprocess_seconds
        seconds["queue"] = record.slowest_encode.queue_seconds
        seconds["forward"] = record.slowest_encode.forward_seconds
    if record.fastest_engine is not None:
        seconds["llm_queue"] = record.fastest_engine.queue_seconds
        seconds["llm_prefill"] = record.fastest_engine.prefill_seconds
    for stage in ORDER:
        if stage in seconds:
            yield f"{stage};dur={1000 * seconds[stage]:.1f}"


def _told(picture: Picture) -> str:
    """Returns its source, and, where vision was asked, its grid and its size."""
    if (header := picture.header) is None:
        return picture.source
    columns, rows = header.grid_column_count, header.grid_row_count
    thumbnail = "+1" if header.tile_count > columns * rows else ""
    size = f"{header.image_width}x{header.image_height}"
    return f"{picture.source} {columns}x{rows}{thumbnail} {size}"
