"""What a failed call of a service is to the client of the gateway."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from gateway.services.channel import ASK_COUNT, ask, errors_of, have_done
from gateway.services.routing import OFFER_COUNT, ROUTING_KEY
from protos.errors import DeadlineError, ServiceError, UnavailableError


def failed(code: grpc.StatusCode, details: str) -> ServiceError:
    metadata = grpc.aio.Metadata()
    with pytest.raises(ServiceError) as caught, errors_of("LLM"):
        raise grpc.aio.AioRpcError(code, metadata, metadata, details)
    return caught.value


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (grpc.StatusCode.UNAVAILABLE, "ipv4:10.0.0.1:50052: connection refused"),
        (grpc.StatusCode.CANCELLED, "CANCELLED"),
        (grpc.StatusCode.INTERNAL, "Internal error from Core"),
        (
            grpc.StatusCode.UNKNOWN,
            "Stream removed (frame of size 16280 overflows local window of 15999)",
        ),
    ],
)
def test_a_broken_call_can_be_tried_again(code: grpc.StatusCode, details: str) -> None:
    failure = failed(code, details)
    assert isinstance(failure, UnavailableError)
    assert (failure.message, failure.retry_after) == ("the LLM service is unavailable", 1)


def test_a_deadline_stays_one() -> None:
    details = "Stream removed (Deadline Exceeded)"
    assert type(failed(grpc.StatusCode.DEADLINE_EXCEEDED, details)) is DeadlineError


def test_a_fault_of_the_service_stays_one() -> None:
    assert type(failed(grpc.StatusCode.UNKNOWN, "Unexpected <class 'KeyError'>")) is ServiceError


async def test_replicas_that_hang_hold_no_question_up() -> None:
    keys = []

    async def call(question: str, timeout: float, metadata: tuple[tuple[str, str], ...]) -> str:
        keys.append(dict(metadata)[ROUTING_KEY])
        if len(keys) < 3:
            await asyncio.sleep(timeout)
        return f"{question}!"

    deadline = asyncio.get_running_loop().time() + 60
    asking = ask("vision", call, "ready", deadline)
    assert await asyncio.wait_for(asking, 5) == "ready!"
    assert len(set(keys)) == len(keys) == 3


async def test_work_is_given_to_a_keys_replica_first_and_to_others_when_that_is_gone() -> None:
    keys = []

    async def call(question: str, timeout: float, metadata: tuple[tuple[str, str], ...]) -> str:
        keys.append(dict(metadata)[ROUTING_KEY])
        if len(keys) < 2:
            raise UnavailableError("gone")
        return f"{question}!"

    deadline = asyncio.get_running_loop().time() + 60
    assert await have_done("LLM", call, "count", str, deadline, "home") == "count!"
    assert keys[0] == "home"
    assert len(set(keys)) == len(keys) == 2


async def test_work_that_takes_its_time_is_not_given_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.services.channel.ASK_PATIENCE_SECONDS", 0.01)
    keys = []

    async def call(question: str, timeout: float, metadata: tuple[tuple[str, str], ...]) -> str:
        keys.append(dict(metadata)[ROUTING_KEY])
        await asyncio.sleep(0.1)
        return f"{question}!"

    deadline = asyncio.get_running_loop().time() + 60
    assert await have_done("LLM", call, "count", str, deadline) == "count!"
    assert len(keys) == 1
    monkeypatch.setattr("gateway.services.channel.WORK_PATIENCE_SECONDS", 0.01)
    assert await have_done("LLM", call, "count", str, deadline) == "count!"
    assert len(keys) == 1 + OFFER_COUNT


async def test_a_question_that_nobody_answers_fails_as_the_last_one_did() -> None:
    count = 0

    async def call(question: str, timeout: float, metadata: object) -> str:
        nonlocal count
        count += 1
        raise UnavailableError(f"replica {count} is gone")

    deadline = asyncio.get_running_loop().time() + 60
    with pytest.raises(UnavailableError, match=f"replica {ASK_COUNT} is gone"):
        await ask("vision", call, "ready", deadline)
    assert count == ASK_COUNT
    with pytest.raises(UnavailableError):
        await ask("vision", call, "ready", deadline, "key")
    assert count == ASK_COUNT + 1
