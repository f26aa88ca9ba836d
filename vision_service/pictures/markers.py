"""Markers of JPEG (ITU-T T.81, table B.1), by the byte behind 0xFF."""

from __future__ import annotations

# Of every four, one is something else.
START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
