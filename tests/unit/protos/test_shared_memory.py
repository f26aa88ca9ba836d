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
import threading
import zlib
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from protos.errors import DataLossError
from protos.process import shared_memory
from protos.process.settings import KIB, MIB
from protos.process.shared_memory import (
    ALIGNMENT,
    NONCE_BYTE_COUNT,
    PIECE_BYTE_COUNT,
    Marker,
    SharedFolder,
    SlotReader,
    SlotWriter,
    sharing,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is shared on Linux alone")

DATA = secrets.token_bytes(2 * PIECE_BYTE_COUNT + 5)
MAX_BYTE_COUNT = 32 * MIB
MD5 = "9dd4e461268c8034f5c8564e155c67a6"
OURS = f"internvl-{MD5}"
MAKES_FILES = """
import sys, time
from pathlib import Path
from protos.process.shared_memory import SharedFolder, SlotReader, SlotWriter
folder = SharedFolder(Path(sys.argv[1]))
with SlotWriter.open(folder, 1 << 20), SlotReader.open(folder):
    print("there", flush=True)
    sys.stdin.read()
"""


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


async def wiped(writer: SlotWriter) -> None:
    """Waits until what was given back may be lent again."""
    await asyncio.wrap_future(writer._pool.submit(lambda: None))
    await asyncio.sleep(0)


async def test_a_slot_is_read_while_it_is_lent_and_not_afterwards(
    writer: SlotWriter, reader: SlotReader
) -> None:
    async with writer.lent(memoryview(DATA), reader.marker) as slot:
        assert slot is not None
        assert read(reader, slot) == DATA
    await wiped(writer)
    with pytest.raises(DataLossError, match="not in the shared memory"):
        read(reader, slot)


@pytest.mark.parametrize("change", [-len(DATA), -1, 1, ALIGNMENT, 2 * ALIGNMENT + len(DATA)])
async def test_more_or_less_than_was_lent_is_not_read(
    writer: SlotWriter, reader: SlotReader, change: int
) -> None:
    async with (
        writer.lent(memoryview(DATA), reader.marker) as slot,
        writer.lent(memoryview(DATA), reader.marker) as neighbour,
    ):
        assert slot is not None
        assert neighbour is not None
        assert neighbour.offset > slot.offset
        data = bytearray(len(DATA) + change)
        with pytest.raises(DataLossError, match="not in the shared memory"):
            list(reader.read(slot, memoryview(data)))
        assert not any(data)


async def test_a_slot_is_not_found_by_a_part_of_what_it_begins_with(
    writer: SlotWriter, reader: SlotReader
) -> None:
    async with (
        writer.lent(memoryview(DATA), reader.marker) as slot,
        writer.lent(memoryview(DATA), reader.marker),  # the file does not end there
    ):
        assert slot is not None
        after = replace(slot, offset=slot.offset + NONCE_BYTE_COUNT, nonce=b"")
        for wrong in (after, replace(after, offset=after.offset - 1, nonce=slot.nonce[-1:])):
            with pytest.raises(DataLossError, match="not in the shared memory"):
                read(reader, wrong)


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
    await wiped(writer)
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
    await wiped(writer)
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
    await wiped(writer)
    async with writer.lent(full, reader.marker) as slot:
        assert slot is not None
    assert _byte_count(folder) == MAX_BYTE_COUNT + NONCE_BYTE_COUNT


def _byte_count(folder: SharedFolder) -> int:
    return sum(path.stat().st_size for path in folder.path.iterdir())


class SlowWrites:
    """Has os.pwrite wait; it notes which threads came, and what file they wrote to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.threads: list[str] = []
        self.inodes: list[int] = []
        self._write = os.pwrite
        monkeypatch.setattr(os, "pwrite", self)

    def __call__(self, descriptor: int, data: bytes, offset: int) -> int:
        self.begun.set()
        assert self.may_end.wait(10)
        self.threads.append(threading.current_thread().name)
        self.inodes.append(os.fstat(descriptor).st_ino)
        return self._write(descriptor, data, offset)


@pytest.fixture
def writes(reader: SlotReader, monkeypatch: pytest.MonkeyPatch) -> SlowWrites:
    return SlowWrites(monkeypatch)


async def cancelled_lending(writer: SlotWriter, reader: SlotReader, writes: SlowWrites) -> None:
    """Has a slot filled that nobody waits for any more."""

    async def lend() -> None:
        async with writer.lent(memoryview(DATA), reader.marker):
            raise AssertionError("it was not to come so far")

    lending = asyncio.create_task(lend())
    assert await asyncio.to_thread(writes.begun.wait, 10)
    lending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await lending


async def test_a_copy_that_nobody_waits_for_keeps_its_slot_until_it_ends(
    writer: SlotWriter, reader: SlotReader, writes: SlowWrites
) -> None:
    await cancelled_lending(writer, reader, writes)
    async with AsyncExitStack() as exits:
        lending = writer.lent(memoryview(DATA), reader.marker)
        entering = asyncio.create_task(exits.enter_async_context(lending))
        await asyncio.sleep(0.05)
        assert not writes.threads  # the first one is still written to
        writes.may_end.set()
        second = await entering
        assert second is not None
        assert second.offset > 0
        assert read(reader, second) == DATA
        async with writer.lent(memoryview(DATA), reader.marker) as third:
            assert third is not None
            assert third.offset == 0


async def test_the_event_loop_writes_nothing(
    writer: SlotWriter, reader: SlotReader, writes: SlowWrites
) -> None:
    writes.may_end.set()
    async with writer.lent(memoryview(DATA), reader.marker):
        writes.may_end.clear()
    await asyncio.sleep(0.05)  # the slot is being wiped
    writes.may_end.set()
    await wiped(writer)
    assert writes.threads == ["shared-memory_0"] * 3  # the data, the head, and over it


async def test_a_file_is_open_until_all_is_written(
    folder: SharedFolder, reader: SlotReader, writes: SlowWrites
) -> None:
    with ExitStack() as exits:
        writer = exits.enter_context(SlotWriter.open(folder, MAX_BYTE_COUNT))
        (file,) = (path for path in folder.path.iterdir() if path.name != reader.marker.file)
        inode = file.stat().st_ino
        await cancelled_lending(writer, reader, writes)
        closing = asyncio.create_task(asyncio.to_thread(exits.close))
        await asyncio.sleep(0.05)
        assert not closing.done()
        writes.may_end.set()
        await closing
    assert writes.inodes == [inode] * 3


async def test_what_is_lent_when_the_writer_closes_is_given_back_without_a_word(
    folder: SharedFolder, reader: SlotReader
) -> None:
    with ExitStack() as exits:
        writer = exits.enter_context(SlotWriter.open(folder, MAX_BYTE_COUNT))
        async with writer.lent(memoryview(DATA), reader.marker) as slot:
            await asyncio.to_thread(exits.close)
            assert slot is not None
    with pytest.raises(DataLossError):
        read(reader, slot)


async def test_without_memory_nothing_is_lent_and_it_is_told_once(
    writer: SlotWriter, reader: SlotReader
) -> None:
    with capture_logs() as logs, files_of_at_most(MIB):
        for _ in range(2):
            async with writer.lent(memoryview(DATA), reader.marker) as slot:
                assert slot is None
    assert [log["event"] for log in logs] == ["shared_memory_short"]
    await wiped(writer)
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


async def test_a_slot_without_memory_is_free_while_its_data_go_another_way(
    writer: SlotWriter, reader: SlotReader
) -> None:
    full = memoryview(bytes(MAX_BYTE_COUNT - ALIGNMENT))
    with files_of_at_most(MIB):
        lending = writer.lent(full, reader.marker)
        assert await lending.__aenter__() is None
    await wiped(writer)
    async with writer.lent(full, reader.marker) as slot:
        assert slot is not None
    await lending.__aexit__(None, None, None)


async def test_slots_of_a_file_that_somebody_has_removed_are_not_lent(
    writer: SlotWriter, reader: SlotReader, folder: SharedFolder
) -> None:
    async with writer.lent(memoryview(DATA), reader.marker) as slot:
        assert slot is not None
    (folder.path / slot.file).unlink()
    with capture_logs() as logs:
        for _ in range(2):
            async with writer.lent(memoryview(DATA), reader.marker) as slot:
                assert slot is None
    assert [log["event"] for log in logs] == ["shared_memory_short"]
    assert "has removed the file" in logs[0]["error"]


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
    ["", "0" * 31, "0" * 33, "G" * 32, "0" * 31 + "\n", "0" * 32 + "\n", "0" * 31 + "/", "\0" * 32,
     "A" * 32],
)  # fmt: skip
def test_names_with_other_endings_are_not_opened(folder: SharedFolder, name: str) -> None:
    with pytest.raises(OSError, match="not the name"), folder.opened(f"internvl-{name}"):
        pass


@pytest.mark.parametrize("name", ["", ".", "..", "/etc/passwd", "../marker", MD5, f"x{OURS}"])
def test_other_names_are_not_opened(folder: SharedFolder, name: str) -> None:
    with pytest.raises(OSError, match="not the name"), folder.opened(name):
        pass


def test_files_of_other_programs_are_not_swept(folder: SharedFolder) -> None:
    for name in (MD5, OURS):
        (folder.path / name).touch()
    folder.sweep()
    assert [path.name for path in folder.path.iterdir()] == [MD5]


def test_what_is_no_file_of_ours_is_neither_read_nor_swept_nor_waited_for(
    folder: SharedFolder,
) -> None:
    nonce = secrets.token_bytes(NONCE_BYTE_COUNT)
    (outside := folder.path / "outside").write_bytes(nonce)
    names = {
        kind: f"internvl-{secrets.token_hex(16)}" for kind in ("link", "fifo", "folder", "loop")
    }
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
    name, nonce = OURS, secrets.token_bytes(NONCE_BYTE_COUNT)
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
