"""What a failed call of a service is to the client of the gateway."""

from __future__ import annotations

import grpc
import pytest

from gateway.services.channel import errors_of
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
