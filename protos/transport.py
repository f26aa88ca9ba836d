"""Sizes and options that both ends of a gRPC connection share."""

from __future__ import annotations

from protos.process.settings import KIB, MIB

# Tensors travel as chunks, so gRPC's default limit of 4 MiB a message stays. Smaller ones take more
# CPU time. A message of 1 MiB is a block of memory that the gateway gives back each time: 20 ms of
# page faults for a 27 MB embedding.
CHUNK_BYTE_COUNT = 960 * KIB
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
