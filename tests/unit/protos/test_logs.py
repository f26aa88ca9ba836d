from __future__ import annotations

import json
import logging

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
