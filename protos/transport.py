"""Sizes and options that both ends of a gRPC connection share."""

from __future__ import annotations

from protos.process.settings import KIB, MIB

# Tensors travel as chunks, so gRPC's default limit of 4 MiB a message stays. Two hops of a 27 MB
# embedding took 76 ms in chunks of this size; chunks of 1 MiB took 64 ms, but with them an image
# cost the gateway more than 4 MiB.
CHUNK_BYTE_COUNT = 512 * KIB
MAX_CHUNK_BYTE_COUNT = MIB
DEFAULT_MAX_MESSAGE_BYTE_COUNT = 4 * MIB
# Room for the other fields beside the largest one.
MESSAGE_OVERHEAD_BYTE_COUNT = 64 * KIB

# A peer that hangs, or has gone without a word, is known within 12 seconds; one behind a slow wire
# has 8 to answer a ping that stands behind an embedding.
KEEPALIVE_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 4_000),
    ("grpc.keepalive_timeout_ms", 8_000),
    # What decides: while any ping is in flight, gRPC sends none of its own for the keepalive, and
    # would wait a minute for that one.
    ("grpc.http2.ping_timeout_ms", 8_000),
    ("grpc.http2.max_pings_without_data", 0),
)
