"""A start: seconds until each of the three processes serves, and the memory that they take."""

from __future__ import annotations

import base64
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from gateway.local.processes import TITLES
from gateway.local.record import Record
from protos.process.settings import MIB
from tests.benchmarks.photo import photo
from tests.benchmarks.report import Report
from tests.benchmarks.shapes import open_shape

DTYPES = ("float32", "bfloat16")
REPEAT_COUNT = 3
# Cut into 2 x 2 tiles, with the thumbnail 5.
PICTURE_EDGE = 896
OUTPUT_TOKEN_COUNT = 8
ALL = "all three"
LINE = re.compile(r"(?P<title>[^:]+): (?P<event>starting|serves)\b")
COMPARED = """\
`internvl-serve` with the 1B's shapes and random weights, bfloat16 files as released, which are in
the page cache: one start comes before. Seconds are from a process's start until it is seen to take
requests (they are looked at in the order of the rows: one that is ready earlier is seen later), and
in the last row of each type from the command until all is served. Memory is MiB, of a process
and its children together: RSS, what of it is theirs alone or their part of what is shared (PSS),
and this in two: private memory and mapped files, which the system can drop and read again. Then
the same after one request with a picture of 5 tiles. Medians; the element types take turns."""
COLUMNS = (
    *("process", "ready, s", "RSS", "PSS", "private", "mapped"),
    *("RSS, used", "PSS, used", "private, used", "mapped, used"),
)


@dataclass(frozen=True)
class Memory:
    """The bytes that processes have, all together.

    Attributes:
        rss: pages that they have in memory, shared ones once for each.
        pss: the same, with of each shared page a process's part.
        private: what of `pss` no file holds.
    """

    rss: int = 0
    pss: int = 0
    private: int = 0

    @classmethod
    def of(cls, pid: int) -> Memory:
        """Looks at a process and all that it has started."""
        parent = psutil.Process(pid)
        memories = [_memory(process.pid) for process in (parent, *parent.children(recursive=True))]
        return sum(memories, start=cls())

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.rss + other.rss, self.pss + other.pss, self.private + other.private)

    @property
    def columns(self) -> tuple[float, ...]:
        """RSS, PSS, private and mapped, in MiB."""
        values = (self.rss, self.pss, self.private, self.pss - self.private)
        return tuple(value / MIB for value in values)


@dataclass(frozen=True)
class Start:
    """One start, by the processes' names.

    Attributes:
        seconds: until each took requests.
        fresh: memory then.
        used: memory after a request.
    """

    seconds: Mapping[str, float]
    fresh: Mapping[str, Memory]
    used: Mapping[str, Memory]

    def columns(self, name: str) -> tuple[float, ...]:
        """Returns the numbers of a row."""
        return (self.seconds[name], *self.fresh[name].columns, *self.used[name].columns)


def run(
    progress: Callable[[str], None], *, tiny: bool = False, repeat_count: int = REPEAT_COUNT
) -> Report:
    """Measures; `tiny` takes a checkpoint of a few hundred thousand parameters."""
    report = Report(title="A start on the CPU", compared=COMPARED, columns=COLUMNS)
    body = _request_body()
    # On a disk, as a user's: files in shared memory would count as memory of nobody.
    with (
        tempfile.TemporaryDirectory() as folder,
        open_shape(Path(folder), "1B", "cpu", tiny) as checkpoint,
    ):
        starts: dict[str, list[Start]] = {dtype: [] for dtype in DTYPES}
        for round_ in range(1 + repeat_count):
            for dtype in DTYPES:
                progress(f"{dtype}, start {round_} of {repeat_count}")
                starts[dtype].append(measure_start(checkpoint, dtype, body))
    for dtype in DTYPES:
        _add_rows(report, dtype, starts[dtype][1:])
    return report


def measure_start(checkpoint: Path, dtype: str, body: bytes) -> Start:
    """Starts the three services in an element type, asks them once, and stops them."""
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        with _serving(checkpoint, state, dtype) as seconds:
            record = Record.read(state)
            assert record is not None
            fresh = _memories(record)
            _ask(record.url, body)
            return Start(seconds, fresh, _memories(record))


@contextmanager
def _serving(checkpoint: Path, state: Path, dtype: str) -> Iterator[dict[str, float]]:
    """Yields the seconds until each of the processes served, while they do."""
    options_of_torch = {"DEVICE": "cpu", "DTYPE": dtype}
    variables = {
        f"INTERNVL_{service}_TORCH_{option}": value
        for service in ("VISION", "LLM")
        for option, value in options_of_torch.items()
    }
    options = ["--checkpoint", str(checkpoint), "--state-folder", str(state), "--port", "0"]
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "gateway.local", *options],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout is not None
        try:
            yield read_seconds(command.stdout, started)
        finally:
            command.terminate()
            command.communicate()


def read_seconds(lines: Iterator[str], started: float) -> dict[str, float]:
    """Reads what the command says until all is served, with the time at which it says that."""
    names = {title: name for name, title in TITLES.items()}
    times: dict[str, dict[str, float]] = {name: {} for name in TITLES}
    for line in lines:
        now = time.perf_counter()
        if match := LINE.match(line):
            times[names[match["title"]]][match["event"]] = now
        elif " is served at " in line:
            seconds = {name: told["serves"] - told["starting"] for name, told in times.items()}
            return {**seconds, ALL: now - started}
    raise RuntimeError("the services did not start")


def _memories(record: Record) -> dict[str, Memory]:
    memories = {service.name: Memory.of(service.pid) for service in record.services}
    return {**memories, ALL: sum(memories.values(), start=Memory())}


def _memory(pid: int) -> Memory:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    rows = (line.split() for line in text.splitlines()[1:])
    found = {row[0]: int(row[1]) * 1024 for row in rows}
    return Memory(found["Rss:"], found["Pss:"], found["Pss_Anon:"])


def _request_body() -> bytes:
    picture = base64.b64encode(photo("JPEG", PICTURE_EDGE, PICTURE_EDGE)).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{picture}"}},
        {"type": "text", "text": "What is in this picture?"},
    ]
    messages = [{"role": "user", "content": content}]
    return json.dumps({"messages": messages, "max_tokens": OUTPUT_TOKEN_COUNT}).encode()


def _ask(url: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", body, headers)
    with urllib.request.urlopen(request) as response:
        usage = json.loads(response.read())["usage"]
    assert usage["prompt_tokens"] > 5 * 256


def _add_rows(report: Report, dtype: str, starts: Sequence[Start]) -> None:
    for name in (*TITLES, ALL):
        columns = zip(*(start.columns(name) for start in starts), strict=True)
        seconds, *sizes = (statistics.median(column) for column in columns)
        case = f"{dtype}: {TITLES.get(name, name)}"
        cells = [f"{seconds:.1f}", *(f"{size:,.0f}" for size in sizes)]
        report.add(case, cells, {"ready": [start.seconds[name] for start in starts]})
