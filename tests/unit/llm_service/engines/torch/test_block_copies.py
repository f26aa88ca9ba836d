"""Blocks go to host memory and come back as they were, whatever is written there meanwhile."""

from __future__ import annotations

import random

import pytest
import torch

from llm_service.engines.torch import block_copies
from llm_service.engines.torch.block_copies import BlockCopies
from llm_service.engines.torch.host_memory import page_locked

SMALL, LARGE = (2, 2, 12, 4, 2, 8), (32, 2, 120, 64, 8, 128)
SLOT_COUNT = 30


@pytest.mark.parametrize(
    ("device", "shape", "staged"),
    [
        pytest.param("cpu", SMALL, 1, id="cpu-one"),
        pytest.param("cpu", SMALL, 5, id="cpu"),
        pytest.param("cuda", SMALL, 5, marks=pytest.mark.gpu, id="cuda"),
        pytest.param("cuda", LARGE, 7, marks=pytest.mark.gpu, id="cuda-large"),
        pytest.param("cuda", LARGE, 100, marks=pytest.mark.gpu, id="cuda-whole"),
    ],
)
def test_blocks_come_back_as_they_were_saved(
    monkeypatch: pytest.MonkeyPatch, device: str, shape: tuple[int, ...], staged: int
) -> None:
    kv_cache = torch.zeros(shape, dtype=torch.bfloat16, device=device)
    block_byte_count = kv_cache[:, :, 0].nbytes
    monkeypatch.setattr(block_copies, "STAGING_BYTE_COUNT", staged * block_byte_count)
    byte_count = SLOT_COUNT * block_byte_count
    is_cuda = device == "cuda"
    memory = page_locked(byte_count) if is_cuda else torch.empty(byte_count, dtype=torch.uint8)
    copies = BlockCopies(kv_cache, memory)
    assert copies.slot_count == SLOT_COUNT
    chance = random.Random(0)
    saved: dict[int, int] = {}
    checks = []  # looked at last, so that the device is never waited for
    for number in range(1, 41):
        count = chance.randint(1, 10)
        blocks = chance.sample(range(shape[2]), count)
        slots = chance.sample(range(SLOT_COUNT), count)
        for index, block in enumerate(blocks):
            kv_cache[:, :, block] = _value(number, index)
        copies.save(blocks, slots)
        kv_cache[:, :, blocks] = torch.nan  # what the next step might do
        saved |= {slot: _value(number, index) for index, slot in enumerate(slots)}
        wanted = chance.sample(sorted(saved), min(8, len(saved)))
        places = chance.sample(range(shape[2]), len(wanted))
        kv_cache[:, :, places] = torch.nan  # what the last step may still do
        copies.load(wanted, places).hold()
        for slot, place in zip(wanted, places, strict=True):
            checks.append((kv_cache[:, :, place] == saved[slot]).all())
    assert bool(torch.stack(checks).all())


def _value(number: int, index: int) -> int:
    """Returns a number of its own that bfloat16 has."""
    return (number % 8) * 16 + index + 1
