"""The usage log's file: lines that stay whole and in order, whatever the disk and others do."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.access import usage_log
from gateway.access.appended_file import AppendedFile
from gateway.access.usage_log import UsageLog

LINES = [b'{"number": %d}\n' % number for number in range(100)]


def numbers(path: Path) -> list[int]:
    """Returns the numbers of the lines that are JSON."""
    found = []
    for line in path.read_bytes().split(b"\n"):
        try:
            found.append(json.loads(line)["number"])
        except ValueError:
            continue
    return found


@contextmanager
def file_sizes(byte_count: int) -> Iterator[None]:
    """Lets no file of this process grow beyond a size, as a disk that is full does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (byte_count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def append_all(file: AppendedFile, lines: list[bytes]) -> None:
    """Appends as the usage log does: what has not been written comes again."""
    while lines:
        lines = lines[file.append(lines) :]


@pytest.mark.parametrize("room", [0, 1, 13, 14, 15, 16, 500, 501, 514, 515])
def test_lines_that_did_not_fit_come_once_when_there_is_room(tmp_path: Path, room: int) -> None:
    """Also where nothing but a line's break did not fit."""
    path = tmp_path / "usage"
    file = AppendedFile(path)
    assert file.append(LINES[:3]) == 3
    left = LINES[3:]
    with file_sizes(path.stat().st_size + room):
        while True:
            try:
                left = left[file.append(left) :]
            except OSError:
                break
    assert left
    append_all(file, left)
    file.close()
    assert numbers(path) == list(range(100))


def test_a_renamed_file_and_one_that_was_cut_off_are_followed(tmp_path: Path) -> None:
    path, rotated = tmp_path / "usage", tmp_path / "usage.1"
    file = AppendedFile(path)
    file.append(LINES[:2])
    path.rename(rotated)
    file.append(LINES[2:4])
    os.truncate(path, 0)  # copytruncate
    file.append(LINES[4:6])
    file.close()
    assert numbers(rotated) == [0, 1]
    assert numbers(path) == [4, 5]
    assert path.read_bytes().startswith(LINES[4])


def test_a_line_that_a_dead_process_has_begun_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "usage"
    path.write_bytes(LINES[0] + b'{"numb')
    file = AppendedFile(path)
    file.append(LINES[1:2])
    file.close()
    assert numbers(path) == [0, 1]


def test_only_its_owner_reads_a_new_file_and_an_old_one_keeps_its_mode(tmp_path: Path) -> None:
    for name, mode in (("new", 0o600), ("old", 0o640)):
        path = tmp_path / name
        if name == "old":
            path.touch()
            path.chmod(mode)
        file = AppendedFile(path)
        file.append([])
        file.close()
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_several_writers_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "usage"

    def write() -> None:
        file = AppendedFile(path)
        for line in LINES:
            file.append([line])
        file.close()

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers(path)) == sorted([*range(100)] * 4)
    assert path.read_bytes().count(b"\n") == 400


class Failures:
    """How many writes have failed."""

    count = 0

    def note(self) -> None:
        self.count += 1


def unwritten(logs: list[Any]) -> list[int]:
    return [line["number"] for line in logs if line["event"] == "usage_line_not_written"]


async def test_lines_wait_for_a_full_disk_and_come_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_log, "RETRY_SECONDS", 0.01)
    path, failures = tmp_path / "usage", Failures()
    log = UsageLog(path, failures.note)
    with capture_logs() as logs:
        async with log.open():
            with file_sizes(0):
                lines = [log.add({"number": number}) for number in range(100)]
                while failures.count < 3:  # noqa: ASYNC110 - a thread's failures
                    await asyncio.sleep(0.01)
                await log.written(lines[-1])  # nobody waits while it is known to fail
                assert not any(line.done() for line in lines)
            await asyncio.wait_for(asyncio.gather(*lines), 5)
    assert numbers(path) == list(range(100))
    assert [line["event"] for line in logs] == ["usage_log_failed", "usage_log_recovered"]
    assert logs[0]["error"] == "File too large"


async def test_what_has_no_room_or_no_time_goes_into_the_processs_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(usage_log, "MAX_WAITING_LINE_COUNT", 10)
    monkeypatch.setattr(usage_log, "FLUSH_SECONDS", 0.05)
    log = UsageLog(Path("/dev/full"), lambda: None)
    with capture_logs() as logs:
        async with log.open():
            lines = [log.add({"number": number}) for number in range(15)]
            await asyncio.gather(*lines[10:])
            assert unwritten(logs) == [10, 11, 12, 13, 14]
    assert sorted(unwritten(logs)) == list(range(15))
    assert {line["log_level"] for line in logs} == {"error"}


async def test_a_disk_that_hangs_holds_an_answer_up_for_a_moment_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A named pipe that nobody reads takes 64 KiB, and then no more."""
    monkeypatch.setattr(usage_log, "PATIENCE_SECONDS", 0.05)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    log = UsageLog(path, lambda: None)
    async with log.open():
        lines = [log.add({"number": number, "filler": "x" * 1000}) for number in range(200)]
        await log.written(lines[-1])
        assert not lines[-1].done()
        with path.open("rb") as reader:
            read = [await asyncio.to_thread(reader.readline) for _ in range(200)]
        await asyncio.wait_for(lines[-1], 5)
    assert [json.loads(line)["number"] for line in read] == list(range(200))


async def test_a_file_that_cannot_be_opened_is_said_at_the_start(tmp_path: Path) -> None:
    log = UsageLog(tmp_path / "nowhere" / "usage", lambda: None)
    with pytest.raises(OSError, match="cannot write the usage log .*: No such file or directory"):
        async with log.open():
            pass
