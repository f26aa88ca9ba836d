from __future__ import annotations

import asyncio
import errno
import gc
import json
import logging
import re
import sys
import threading

import pytest
import structlog

from protos.process import logs


def test_json_event_carries_the_request_id(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    logs.bind_request_id("r1")
    structlog.get_logger().info("generated", tokens=3)
    event = json.loads(capsys.readouterr().err)
    assert event["event"] == "generated"
    assert (event["request_id"], event["tokens"], event["level"]) == ("r1", 3, "info")


def test_standard_librarys_warnings_take_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    logging.getLogger("somebody").warning("careful")
    assert json.loads(capsys.readouterr().err)["event"] == "careful"


def test_events_below_the_level_are_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("warning", "console")
    structlog.get_logger().info("chatter")
    assert capsys.readouterr().err == ""


def test_request_id_travels_as_metadata() -> None:
    logs.bind_request_id("r2")
    assert logs.request_id_of(logs.request_metadata()) == "r2"


def test_call_without_request_id_gets_one() -> None:
    made = logs.request_id_of([("other", "x"), (logs.REQUEST_ID_KEY, "")])
    assert len(made) == 32
    assert logs.request_id_of(None) != made


# Put together, so that no source line in a traceback holds it.
CANARY = "can" + "ary"
# A line break, a terminal's colours and title, C1's CSI, a bidirectional override, line separators,
# and half of a surrogate pair, which standard error could not encode.
FORGERY = 'x\n{"event": "request"}\r\x1b[31m\x1b]0;owned\x07\x9b2J\u202egpj\u2028\x85\ud800"'


@pytest.mark.parametrize(
    ("fmt", "is_terminal"), [("json", True), ("console", True), ("console", False)]
)
def test_no_value_forges_a_line_or_speaks_to_the_terminal(
    fmt: logs.LogFormat,
    is_terminal: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    logs.configure("info", fmt)
    logs.bind_request_id(FORGERY)
    structlog.get_logger().warning("request", model=FORGERY, names=[FORGERY], table={FORGERY: 1})
    logging.getLogger("somebody").warning(FORGERY)
    output = capsys.readouterr().err
    assert output.count("\n") == 2
    plain = re.sub(r"\x1b\[\d*(;\d+)*m", "", output)  # the renderer's own colours
    assert (plain != output) == (is_terminal and fmt == "console")
    assert "owned" in plain
    assert all(character.isprintable() or character == "\n" for character in plain)


@pytest.mark.parametrize("fmt", ["json", "console"])
def test_an_exception_is_logged_without_its_text(
    fmt: logs.LogFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("debug", fmt)
    structlog.get_logger().error("bug", exc_info=failure())
    logging.getLogger("somebody").error("failed on %s", CANARY, exc_info=failure())
    output = capsys.readouterr().err
    assert CANARY not in output
    assert len(re.findall(r"KeyError\b(?! as)", output)) == 2
    assert "could not look it up" not in output  # a note
    assert "failed on %s" in output
    assert "in failure" in output


def failure() -> ValueError:
    """Returns an exception that was raised while another one was handled, and has a note."""
    lookup: dict[str, int] = {}
    try:
        try:
            lookup[CANARY]
        except KeyError as error:
            raise ValueError(f"the {CANARY} is wrong") from error
    except ValueError as error:
        error.__notes__ = [f"could not look it up: {CANARY}"]  # type: ignore[attr-defined] # 3.11's
        return error
    raise AssertionError


async def test_what_asyncio_says_is_logged_without_values(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("debug", "json")
    loop = asyncio.get_running_loop()

    async def forgotten() -> None:
        raise ValueError(CANARY)

    def broken(_: str) -> None:
        raise ValueError(CANARY)

    loop.call_soon(broken, CANARY)
    task = loop.create_task(forgotten())
    await asyncio.sleep(0.01)
    del task
    gc.collect()
    output = capsys.readouterr().err
    events = [json.loads(line)["event"] for line in output.splitlines()]
    assert [event.split(" ")[0] for event in events] == ["Exception", "Task"]
    assert len(re.findall(r'ValueError"', output)) == 2
    assert CANARY not in output


def test_what_ends_a_thread_is_logged_without_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")

    def broken() -> None:
        raise ValueError(CANARY)

    thread = threading.Thread(target=broken)
    thread.start()
    thread.join()
    event = json.loads(capsys.readouterr().err)
    assert (event["event"], CANARY in str(event)) == ("bug", False)
    assert event["exception"].endswith("ValueError")


def test_the_number_of_an_error_of_the_system_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    structlog.get_logger().error("bug", exc_info=OSError(errno.ENOSPC, "full", CANARY))
    event = json.loads(capsys.readouterr().err)
    assert event["exception"].endswith("OSError ENOSPC")
