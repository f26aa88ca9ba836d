"""What requests hold, over all of them."""

from __future__ import annotations

import pytest

from gateway.memory import FREE_BYTE_COUNT, HeldFile, Memory
from protos.errors import OverloadedError


def test_the_first_bytes_of_each_request_are_free() -> None:
    memory = Memory(max_byte_count=10)
    with memory.share() as first, memory.share() as second:
        first.take(FREE_BYTE_COUNT + 10)
        second.take(FREE_BYTE_COUNT)
        assert memory.held_byte_count == 10
        with pytest.raises(OverloadedError, match="would hold 11 bytes; the limit is 10") as caught:
            second.take(1)
        assert caught.value.retry_after
        assert second.byte_count == 0
        first.give_back(1)
        second.take(FREE_BYTE_COUNT + 1)
    assert memory.held_byte_count == 0


def test_a_request_that_fails_gives_back_what_it_held() -> None:
    memory = Memory(max_byte_count=10)
    with pytest.raises(OverloadedError), memory.share() as share:  # noqa: PT012 - ends a block
        share.take(FREE_BYTE_COUNT + 5)
        share.take(6)
    assert memory.held_byte_count == 0


def test_a_request_that_is_refused_frees_its_bytes_at_once() -> None:
    memory = Memory(max_byte_count=FREE_BYTE_COUNT)
    with memory.share() as share:
        share.take(2 * FREE_BYTE_COUNT)
        file = HeldFile(bytes(2 * FREE_BYTE_COUNT), share)
        with pytest.raises(OverloadedError):
            share.take(1)
        assert (file.content, memory.held_byte_count) == (b"", 0)


def test_a_file_counts_until_it_is_let_go() -> None:
    memory = Memory(max_byte_count=FREE_BYTE_COUNT)
    with memory.share() as share:
        share.take(2 * FREE_BYTE_COUNT)
        file = HeldFile(bytes(FREE_BYTE_COUNT), share)
        assert (file.is_held, memory.held_byte_count) == (True, FREE_BYTE_COUNT)
        for _ in range(2):
            file.let_go()
            assert (file.is_held, file.content, memory.held_byte_count) == (False, b"", 0)
        assert share.byte_count == FREE_BYTE_COUNT
