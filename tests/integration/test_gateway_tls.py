"""The gateway before services that speak TLS alone, and want its certificate."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from protos.process.rarely import Rarely
from tests.certificates import Authority, write_files
from tests.fakes import stack

NAME, GATEWAY = "services.internal", "gateway.internal"
PICTURE = f"data:image/png;base64,{base64.b64encode(b'a picture').decode()}"
QUESTION = [
    {"type": "image_url", "image_url": {"url": PICTURE}},
    {"type": "text", "text": "What is this?"},
]


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def service_options(authority: Authority, tmp_path: Path) -> dict[str, Any]:
    files = write_files(tmp_path / "server", authority.issue(NAME), authority.pem)
    return {"tls": files, "client_names": frozenset({GATEWAY})}


@pytest.fixture
def settings(authority: Authority, tmp_path: Path) -> dict[str, Any]:
    files = write_files(tmp_path / "gateway", authority.issue(GATEWAY), authority.pem)
    return {
        "service_ca_file": files.authorities,
        "service_certificate_file": files.certificate,
        "service_key_file": files.key,
        "service_server_name": NAME,
    }


async def test_a_picture_is_answered_over_mutual_tls(
    service_options: dict[str, Any], settings: dict[str, Any]
) -> None:
    async with stack(service_options=service_options, **settings) as gateway:
        messages = [{"role": "user", "content": QUESTION}]
        status, answer = await gateway.chat(messages=messages)
        assert (status, answer["choices"][0]["finish_reason"]) == (200, "stop")
        assert b"[DONE]" in await gateway.read_chat(messages=messages, stream=True)
        assert (await gateway.get("/health/ready"))[0] == 200
    assert len(gateway.vision.requests) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"service_server_name": "others.internal"}, "certificate is not for the name"),
        ({"service_certificate_file": None, "service_key_file": None}, "certificate of ours"),
        (dict.fromkeys(("service_ca_file", "service_certificate_file", "service_key_file")), "TLS"),
    ],
)
async def test_a_gateway_that_cannot_call_is_not_ready_and_its_log_says_why(
    service_options: dict[str, Any],
    settings: dict[str, Any],
    change: dict[str, Any],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.services.channel._rarely", Rarely(0.0))
    settings |= change
    if not settings["service_ca_file"]:
        settings["service_server_name"] = ""
    with capture_logs() as logs:
        async with stack(service_options=service_options, **settings) as gateway:
            status, health = await gateway.get("/health/ready")
            chat_status, answer = await gateway.chat()
    assert (status, chat_status) == (503, 503)
    assert health["reasons"] == {
        "vision": "the vision service is unavailable",
        "llm": "the LLM service is unavailable",
    }
    assert answer["error"]["message"] == "the LLM service is unavailable"
    hints = {log["service"]: log["hint"] for log in logs if log["event"] == "unavailable"}
    assert set(hints) == {"vision", "LLM"}
    assert all(words in hint for hint in hints.values())


async def test_a_gateway_that_is_not_named_is_not_ready_and_both_logs_say_why(
    authority: Authority,
    service_options: dict[str, Any],
    settings: dict[str, Any],
    tmp_path: Path,
) -> None:
    write_files(tmp_path / "gateway", authority.issue("other.internal"))
    with capture_logs() as logs:
        async with stack(service_options=service_options, **settings) as gateway:
            status, health = await gateway.get("/health/ready")
            _, answer = await gateway.chat()
    assert status == 503
    assert "other.internal" not in f"{health} {answer}"
    denied = [log for log in logs if log["event"] == "denied"]
    assert all("other.internal" in log["details"] for log in denied)
    assert {log["event"] for log in logs} >= {"denied", "caller_denied"}
