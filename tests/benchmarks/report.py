"""A benchmark's report: its table for people, its raw numbers, and the machine that made them."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.measurement import Seconds

PACKAGES = ("torch", "transformers", "pillow", "numpy", "grpcio", "protobuf", "aiohttp")


@dataclass
class Report:
    """What one benchmark found.

    Attributes:
        title: what is measured, and in which unit.
        compared: what is compared with what, for someone who doubts it.
        columns: heads of the table; the first is the case's name.
        rows: the table.
        seconds: all measured durations by case and variant.
        facts: what made them beside this machine: other programs, and their command lines.
        options: what of its own command line decides what it measures, with a space in front.
    """

    title: str
    compared: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    seconds: dict[str, Seconds] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    options: str = ""

    def add(self, case: str, cells: Sequence[str], seconds: Seconds) -> None:
        """Adds a row, and the durations that it was made from."""
        self.rows.append([case, *cells])
        self.seconds[case] = seconds

    def table(self) -> str:
        """Returns the table as Markdown, its columns aligned for the eye."""
        texts = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        lines = [_line(texts[0], widths), _line(rule, widths)]
        return "\n".join([*lines, *(_line(row, widths) for row in texts[1:])])

    def write(self, folder: Path, name: str, load: float) -> None:
        """Writes NAME.md and NAME.json into the folder.

        Args:
            folder: where to.
            name: the benchmark's.
            load: how many processes wanted a core in the minute before it began, on average.
        """
        document = self.document(f"python -m tests.benchmarks {name}{self.options}", load)
        _write(folder, name, _section(f"# {self.title}", document, "\n- "), document)

    def document(self, command: str, load: float) -> dict[str, Any]:
        """Returns all there is to know, as JSON takes it; command and load as for `write`."""
        return {
            "title": self.title,
            "compared": self.compared,
            "table": self.table(),
            "command": command,
            "date": datetime.now(timezone.utc).date().isoformat(),
            "machine": {**_machine(), "load before": f"{load:.1f}", **self.facts},
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class ReportBook:
    """NAME.md and NAME.json with the reports of a benchmark's parts, which run apart.

    Attributes:
        folder: where the files are, or will be.
        name: the benchmark's.
        title: of the whole.
    """

    folder: Path
    name: str
    title: str

    def put(self, part: str, report: Report, command: str, load: float) -> None:
        """Writes a part's report beside those of the other parts, in place of its older one."""
        file = self.folder / f"{self.name}.json"
        parts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        parts[part] = report.document(command, load)
        sections = [_section(f"## {name}", parts[name], "; ") for name in parts]
        _write(self.folder, self.name, "\n".join([f"# {self.title}\n", *sections]), parts)


def _section(heading: str, document: Mapping[str, Any], separator: str) -> str:
    facts = separator.join(f"{key}: {value}" for key, value in document["machine"].items())
    return (
        f"{heading}\n\n{document['compared']}\n\n{document['table']}\n\n"
        f"Made by `{document['command']}` on {document['date']}:\n\n- {facts}\n"
    )


def _write(folder: Path, name: str, text: str, document: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _line(texts: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(texts, widths, strict=True)
    return f"| {' | '.join([first[0].ljust(first[1]), *(t.rjust(w) for t, w in others)])} |"


def _machine() -> dict[str, str]:
    return {
        "CPU": f"{_cpu_model()}, {os.cpu_count()} cores",
        **({"GPU": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        **{package: version(package) for package in PACKAGES if _is_installed(package)},
    }


def _is_installed(package: str) -> bool:
    return any(distributions(name=package))


def _cpu_model() -> str:
    """Returns the processor's name as Linux has it, else what Python knows of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
