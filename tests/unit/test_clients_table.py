"""The clients' table in the docs, and how their results are read."""

from __future__ import annotations

import re
from pathlib import Path

from tests.clients.outcome import Outcome, read_outcome
from tests.clients.roster import CLIENTS, PROGRAMS

ROOT = Path(__file__).parents[2]
PYTEST_REPORT = """<testsuites><testsuite>
<testcase name="test_answer"/>
<testcase name="test_form"><failure message="AssertionError: no\nmore">text</failure></testcase>
<testcase name="test_gone"><error message="failed on setup"/></testcase>
<testcase name="test_joke"><skipped type="pytest.xfail" message="the toy model"/></testcase>
<testcase name="test_tool"><skipped type="pytest.skip" message="no tools"/></testcase>
</testsuite></testsuites>"""
NODE_REPORT = """<testsuites>
<testcase name="models" time="0.1" classname="test"/>
<testcase name="answer" time="0.1" classname="test"><failure type="testCodeFailure"
 message="The input did not match"/></testcase>
</testsuites>"""


def test_docs_list_each_client_with_the_version_that_is_tested() -> None:
    page = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` ([0-9.]+) \|", page, re.M)
    packages = [re.split(r"==|@(?=\d)", client.packages[0])[0] for client in CLIENTS]
    names = [re.sub(r"\[.*\]", "", name) for name in packages]
    assert rows == list(zip(names, (client.version for client in CLIENTS), strict=True))


def test_each_client_has_a_program() -> None:
    assert all((PROGRAMS / client.program).is_file() for client in CLIENTS)


def test_reports_of_pytest_and_node_are_read(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(PYTEST_REPORT)
    failed = {"test_form": "AssertionError: no more", "test_gone": "failed on setup"}
    assert read_outcome(report) == Outcome(passed=1, expected=1, skipped=1, failed=failed)
    report.write_text(NODE_REPORT)
    assert read_outcome(report) == Outcome(passed=1, failed={"answer": "The input did not match"})


def test_a_client_that_ran_nothing_has_not_passed() -> None:
    assert not Outcome(skipped=3).is_good
    assert Outcome(passed=1, expected=2).is_good
