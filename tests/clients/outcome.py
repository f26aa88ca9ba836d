"""What became of a client's tests, read from the JUnit file that its program wrote."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

# A program may say that a test needs more than the toy model can do.
EXPECTED = "pytest.xfail"


@dataclass
class Outcome:
    """How a client fared.

    Attributes:
        passed, expected, skipped: tests that did; "expected" failed for the reason that they name.
        failed: names of the others, with the first line of why.
    """

    passed: int = 0
    expected: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        """Whether something ran and nothing failed."""
        return bool(self.passed) and not self.failed


def read_outcome(file: Path) -> Outcome:
    """Reads the JUnit file of pytest or of Node.js."""
    outcome = Outcome()
    for case in ElementTree.parse(file).iter("testcase"):
        problem = case.find("failure")
        if problem is None:
            problem = case.find("error")
        skip = case.find("skipped")
        if problem is not None:
            first_line, *_ = problem.get("message", "").splitlines() or [""]
            outcome.failed[case.get("name", "")] = first_line
        elif skip is None:
            outcome.passed += 1
        elif skip.get("type") == EXPECTED:
            outcome.expected += 1
        else:
            outcome.skipped += 1
    return outcome
