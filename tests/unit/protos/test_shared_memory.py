"""Shared memory: who finds what there, what is lent, and what becomes of it after a crash."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import resource
import secrets
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from structlog.testing import capture_logs

from protos.errors import DataLossError
from protos.process import shared_memory
from protos.process.settings import KIB, MIB
from protos.process.shared_memory import (
    ALIGNMENT,
    NONCE_BYTE_COUNT,
    PIECE_BYTE_COUNT,
    FirstFit,
    Marker,
    SharedFolder,
    SlotReader,
    SlotWriter,
    sharing,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is shared on Linux alone")

DATA = secrets.token_bytes(2 * PIECE_BYTE_COUNT + 5)
MAX_BYTE_COUNT = 32 * MIB
MAKES_FILES = """
import sys, time
from pathlib import Path
from protos.process.shared_memory import SharedFolder, SlotReader, SlotWriter
folder = SharedFolder(Path(sys.argv[1]))
with SlotWriter.open(folder, 1 << 20), SlotReader.open(folder):
    print("there", flush=True)
    sys.stdin.read()
"""


class TakenParts(RuleBasedStateMachine):
    """FirstFit against a list of bytes."""

    SIZE = 40

    def __init__(self) -> None:
        super().__init__()
        self.parts = FirstFit(self.SIZE)
        self.owners = [0] * self.SIZE
        self.begins: dict[int, int] = {}
        self.taken_count = 0

    @rule(byte_count=st.integers(1, SIZE + 1))
    def take(self, byte_count: int) -> None:
        gaps = (begin for begin in range(self.SIZE) if self._is_free(begin, byte_count))
        expected = next(gaps, None)
        assert self.parts.take(byte_count) == expected
        if expected is not None:
            self.taken_count += 1
            self.begins[self.taken_count] = expected
            self.owners[expected : expected + byte_count] = [self.taken_count] * byte_count

    @rule(number=st.integers(0, SIZE))
    def give_back(self, number: int) -> None:
        if self.begins:
            owner = sorted(self.begins)[number % len(self.begins)]
            self.parts.give_back(self.begins.pop(owner))
            self.owners = [0 if other == owner else other for other in self.owners]

    @invariant()
    def has_no_more_than_its_bytes(self) -> None:
        assert len(self.owners) == self.SIZE

    def _is_free(self, begin: int, byte_count: int) -> bool:
        return self.owners[begin : begin + byte_count] == [0] * byte_count


TestFirstFit = TakenParts.TestCase


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[SharedFolder]:
    folder = SharedFolder(tmp_path)
    yield folder
    folder.close()


@pytest.fixture
def writer(folder: SharedFolder) -> Iterator[SlotWriter]:
    with SlotWriter.open(folder, MAX_BYTE_COUNT) as writer:
        yield writer


@pytest.fixture
def reader(folder: SharedFolder) -> Iterator[SlotReader]:
    with SlotReader.open(folder) as reader:
        yield reader


def read(reader: SlotReader, slot: shared_memory.Slot, byte_count: int = len(DATA)) -> bytes:
    data = bytearray(byte_count)
    ends = list(reader.read(slot, memoryview(data)))
    assert ends == sorted(ends)
    assert ends[-1] == byte_count
    return bytes(data)


async def test_a_slot_is_read_while_it_is_lent_and_not_afterwards(
    writer: SlotWriter, reader: SlotReader
) -> None:
    async with writer.lent(memoryview(DATA), reader.marker) as slot:
        assert slot is not None
        assert read(reader, slot) == DATA
    await asyncio.sleep(0)
    with pytest.raises(DataLossError, match="not in the shared memory"):
        read(reader, slot)


async def test_pieces_are_there_when_they_are_told(writer: SlotWriter, reader: SlotReader) -> None:
    data = bytearray(len(DATA))
    async with writer.lent(memoryview(DATA), reader.marker) as slot:
        assert slot is not None
        crc32, begin = 0, 0
        for end in reader.read(slot, memoryview(data)):
            crc32 = zlib.crc32(data[begin:end], crc32)
            begin = end
    assert crc32 == zlib.crc32(DATA)


async def test_slots_that_are_lent_at_a_time_are_apart(
    writer: SlotWriter, reader: SlotReader
) -> None:
    others = bytes(reversed(DATA))
    async with (
        writer.lent(memoryview(DATA), reader.marker) as one,
        writer.lent(memoryview(others), reader.marker) as other,
    ):
        assert one is not None
        assert other is not None
        assert (read(reader, one), read(reader, other)) == (DATA, others)
        assert one.nonce != other.nonce
        assert one.offset % ALIGNMENT == other.offset % ALIGNMENT == 0


async def test_a_slot_that_is_lent_anew_has_another_nonce(
    writer: SlotWriter, reader: SlotReader
) -> None:
    async with writer.lent(memoryview(DATA), reader.marker) as first:
        pass
    await asyncio.sleep(0)
    async with writer.lent(memoryview(DATA), reader.marker) as second:
        assert first is not None
        assert second is not None
        assert first.offset == second.offset
        assert read(reader, second) == DATA
        with pytest.raises(DataLossError):
            read(reader, first)


async def test_what_ends_while_it_is_read_is_not_taken_for_whole(
    writer: SlotWriter, reader: SlotReader
) -> None:
    data = memoryview(bytearray(len(DATA)))
    async with writer.lent(memoryview(DATA), reader.marker) as slot:
        assert slot is not None
        pieces = reader.read(slot, data)
        next(pieces)
    await asyncio.sleep(0)
    with pytest.raises(DataLossError):
        list(pieces)


async def test_more_than_there_is_room_for_is_not_lent(
    writer: SlotWriter, reader: SlotReader, folder: SharedFolder
) -> None:
    full = memoryview(bytes(MAX_BYTE_COUNT - ALIGNMENT))
    async with writer.lent(full, reader.marker) as slot:
        assert slot is not None
        async with writer.lent(memoryview(b"1"), reader.marker) as other:
            assert other is None
        assert _byte_count(folder) == MAX_BYTE_COUNT + NONCE_BYTE_COUNT
    await asyncio.sleep(0)
    async with writer.lent(full, reader.marker) as slot:
        assert slot is not None
    assert _byte_count(folder) == MAX_BYTE_COUNT + NONCE_BYTE_COUNT


def _byte_count(folder: SharedFolder) -> int:
    return sum(path.stat().st_size for path in folder.path.iterdir())


async def test_a_copy_that_nobody_waits_for_keeps_its_slot_until_it_ends(
    writer: SlotWriter, reader: SlotReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    begun, go_on = asyncio.Event(), asyncio.run_coroutine_threadsafe
    may_end = asyncio.Event()
    write = os.pwrite

    def slow(*arguments: object) -> int:
        loop.call_soon_threadsafe(begun.set)
        go_on(may_end.wait(), loop).result(10)
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "pwrite", slow)

    async def lend() -> None:
        async with writer.lent(memoryview(DATA), reader.marker):
            raise AssertionError("it was not to come so far")

    lending = asyncio.create_task(lend())
    await begun.wait()
    lending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await lending
    monkeypatch.setattr(os, "pwrite", write)
    async with writer.lent(memoryview(DATA), reader.marker) as second:
        assert second is not None
        assert second.offset > 0  # the first one is still written to
        may_end.set()
        await asyncio.sleep(0.2)
        assert read(reader, second) == DATA
        async with writer.lent(memoryview(DATA), reader.marker) as third:
            assert third is not None
            assert third.offset == 0


async def test_without_memory_nothing_is_lent_and_it_is_told_once(
    writer: SlotWriter, reader: SlotReader
) -> None:
    with capture_logs() as logs, files_of_at_most(MIB):
        for _ in range(2):
            async with writer.lent(memoryview(DATA), reader.marker) as slot:
                assert slot is None
    assert [log["event"] for log in logs] == ["shared_memory_short"]
    await asyncio.sleep(0)
    async with writer.lent(memoryview(DATA), reader.marker) as slot:
        assert slot is not None
        assert read(reader, slot) == DATA


@contextmanager
def files_of_at_most(byte_count: int) -> Iterator[None]:
    """Has the kernel refuse to make a file longer."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (byte_count, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


async def test_a_full_file_system_is_no_room(
    writer: SlotWriter, reader: SlotReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fallocate(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    with capture_logs() as logs:
        async with writer.lent(memoryview(DATA), reader.marker) as slot:
            assert slot is None
    assert "No space left" in logs[0]["error"]


async def test_a_reader_of_other_memory_is_lent_nothing(writer: SlotWriter, tmp_path: Path) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    async with sharing(elsewhere, SlotReader.open) as reader:
        assert reader is not None
        async with writer.lent(memoryview(DATA), reader.marker) as slot:
            assert slot is None


def test_a_marker_is_known_by_its_bytes(folder: SharedFolder, reader: SlotReader) -> None:
    assert folder.holds(reader.marker)
    assert not folder.holds(replace(reader.marker, nonce=secrets.token_bytes(NONCE_BYTE_COUNT)))
    assert not folder.holds(replace(reader.marker, nonce=reader.marker.nonce[:-1]))
    assert not folder.holds(replace(reader.marker, nonce=b""))
    assert not folder.holds(Marker("", b""))


async def test_a_lent_slot_is_no_marker(
    folder: SharedFolder, writer: SlotWriter, reader: SlotReader
) -> None:
    async with writer.lent(memoryview(DATA), reader.marker) as slot:
        assert slot is not None
        assert not folder.holds(Marker(slot.file, slot.nonce))


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "/etc/passwd", "../marker", "0" * 31, "0" * 33, "G" * 32, "0" * 31 + "\n",
     "0" * 32 + "\n", "0" * 31 + "/", "\0" * 32, "A" * 32],
)  # fmt: skip
def test_other_names_are_not_opened(folder: SharedFolder, name: str) -> None:
    with pytest.raises(OSError, match="not the name"), folder.opened(name):
        pass


def test_what_is_no_file_of_ours_is_neither_read_nor_swept_nor_waited_for(
    folder: SharedFolder,
) -> None:
    nonce = secrets.token_bytes(NONCE_BYTE_COUNT)
    (outside := folder.path / "outside").write_bytes(nonce)
    names = {kind: secrets.token_hex(16) for kind in ("link", "fifo", "folder", "loop")}
    (folder.path / names["link"]).symlink_to(outside)
    (folder.path / names["loop"]).symlink_to(names["loop"])
    os.mkfifo(folder.path / names["fifo"])
    (folder.path / names["folder"]).mkdir()
    for name in names.values():
        assert not folder.holds(Marker(name, nonce))
    folder.sweep()
    assert {path.name for path in folder.path.iterdir()} == {"outside", *names.values()}
    assert outside.read_bytes() == nonce


def test_a_huge_file_is_no_marker(folder: SharedFolder) -> None:
    name, nonce = secrets.token_hex(16), secrets.token_bytes(NONCE_BYTE_COUNT)
    with (folder.path / name).open("wb") as file:
        file.write(nonce)
        file.truncate(1 << 40)
    assert not folder.holds(Marker(name, nonce))


def test_files_of_another_user_are_not_opened(
    folder: SharedFolder, reader: SlotReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert not folder.holds(reader.marker)
    folder.sweep()
    monkeypatch.undo()
    assert folder.holds(reader.marker)


@pytest.mark.parametrize("offset", [-1, -ALIGNMENT, 1, ALIGNMENT, 1 << 40, (1 << 63) - 1])
async def test_another_place_in_the_file_is_refused(
    writer: SlotWriter, reader: SlotReader, offset: int
) -> None:
    async with writer.lent(memoryview(DATA), reader.marker) as slot:
        assert slot is not None
        with pytest.raises(DataLossError):
            read(reader, replace(slot, offset=slot.offset + offset))


async def test_a_file_that_is_cut_off_is_an_error(
    writer: SlotWriter, reader: SlotReader, folder: SharedFolder
) -> None:
    async with writer.lent(memoryview(DATA), reader.marker) as slot:
        assert slot is not None
        os.truncate(folder.path / slot.file, ALIGNMENT + PIECE_BYTE_COUNT + 1)
        with pytest.raises(DataLossError):
            read(reader, slot)


def test_a_marker_is_no_slot(reader: SlotReader) -> None:
    slot = shared_memory.Slot(reader.marker.file, 0, reader.marker.nonce)
    with pytest.raises(DataLossError):
        read(reader, slot)


@pytest.mark.parametrize("ending", [signal.SIGKILL, None])
def test_files_go_with_their_process_or_by_the_next_sweep(
    folder: SharedFolder, ending: signal.Signals | None
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", MAKES_FILES, str(folder.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout
        assert process.stdout.readline() == b"there\n"
        folder.sweep()
        assert len(list(folder.path.iterdir())) == 2  # they are in use
        if ending is not None:
            process.send_signal(ending)
        process.communicate()
    assert process.returncode == (-ending if ending else 0)
    assert len(list(folder.path.iterdir())) == (2 if ending else 0)
    with capture_logs() as logs:
        folder.sweep()
    assert not list(folder.path.iterdir())
    assert len(logs) == (2 if ending else 0)


def test_a_file_that_is_swept_before_it_is_locked_is_made_anew(
    folder: SharedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock
    swept: list[str] = []

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.undo()
        swept.extend(path.name for path in folder.path.iterdir())
        folder.sweep()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with folder.new_file() as (name, _):
        assert len(swept) == 1
        assert [path.name for path in folder.path.iterdir()] == [name]
        assert name not in swept


async def test_each_user_has_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "DEVICE", tmp_path)
    async with sharing(None, SlotReader.open) as one, sharing(None, SlotReader.open) as other:
        assert one is not None
        assert other is not None
        folder = tmp_path / f"internvl-{os.geteuid()}"
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {path.name for path in folder.iterdir()} == {one.marker.file, other.marker.file}
    assert not list(folder.iterdir())


@pytest.mark.parametrize("kind", ["link", "file", "open to others", "somebody else's", "none"])
async def test_a_folder_that_may_be_anothers_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(shared_memory, "DEVICE", tmp_path / "none" if kind == "none" else tmp_path)
    path = tmp_path / f"internvl-{os.geteuid()}"
    match kind:
        case "link":
            (tmp_path / "target").mkdir(mode=0o700)
            path.symlink_to(tmp_path / "target")
        case "file":
            path.touch()
        case "open to others":
            path.mkdir()
            path.chmod(0o770)
        case "somebody else's":
            path.mkdir(mode=0o700)
            path.rename(tmp_path / f"internvl-{os.geteuid() + 1}")
            monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with capture_logs() as logs:
        async with sharing(None, SlotReader.open) as reader:
            assert reader is None
    assert [log["event"] for log in logs] == ["shared_memory_unavailable"]


async def test_a_folder_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        async with sharing(tmp_path / "none", SlotReader.open):
            pass


async def test_elsewhere_memory_is_not_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    async with sharing(None, SlotReader.open) as reader:
        assert reader is None
    with pytest.raises(OSError, match="on Linux alone"):
        async with sharing(tmp_path, SlotReader.open):
            pass


async def test_a_full_folder_of_ones_own_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "DEVICE", tmp_path)
    with capture_logs() as logs, files_of_at_most(0):
        async with sharing(None, SlotReader.open) as reader:
            assert reader is None
    assert [log["event"] for log in logs] == ["shared_memory_unavailable"]
    assert not list((tmp_path / f"internvl-{os.geteuid()}").iterdir())


def test_many_slots_of_any_size_are_lent_at_a_time(folder: SharedFolder) -> None:
    sizes = [1, KIB, ALIGNMENT, ALIGNMENT + 1, 3 * MIB]
    contents = [secrets.token_bytes(sizes[number % len(sizes)]) for number in range(40)]

    async def lend(writer: SlotWriter, reader: SlotReader, content: bytes) -> bool:
        async with writer.lent(memoryview(content), reader.marker) as slot:
            if slot is None:
                return False
            await asyncio.sleep(0.001)
            found = await asyncio.to_thread(read, reader, slot, len(content))
            assert found == content
            return True

    async def lend_all() -> list[bool]:
        with SlotWriter.open(folder, 8 * MIB) as writer, SlotReader.open(folder) as reader:
            return await asyncio.gather(*(lend(writer, reader, content) for content in contents))

    lent = asyncio.run(lend_all())
    assert True in lent
    assert False in lent
