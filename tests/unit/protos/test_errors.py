from __future__ import annotations

import re
import subprocess
import sys

import grpc
import pytest
from grpc_status import rpc_status

from protos import errors
from protos.errors import Code, ServiceError
from protos.status import DOMAIN, MAX_MESSAGE_LENGTH, from_rpc_error, to_status

ALL = list(errors.BY_REASON.values())


def as_rpc_error(error: ServiceError, *, with_details: bool = True) -> grpc.aio.AioRpcError:
    status = rpc_status.to_status(to_status(error))
    metadata = status.trailing_metadata if with_details else ()
    return grpc.aio.AioRpcError(
        status.code,
        grpc.aio.Metadata(),
        grpc.aio.Metadata(*metadata),
        details=status.details,
    )


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.reason)
def test_every_class_survives_the_wire(cls: type[ServiceError]) -> None:
    received = from_rpc_error(as_rpc_error(cls("a sentence", field="a.b", retry_after=1.5)))
    assert type(received) is cls
    assert received.message == "a sentence"
    assert received.field == "a.b"
    assert received.retry_after == 1.5


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.reason)
def test_unset_field_and_retry_stay_unset(cls: type[ServiceError]) -> None:
    received = from_rpc_error(as_rpc_error(cls("a sentence")))
    assert received.field == ""
    assert received.retry_after is None


@pytest.mark.parametrize("code", list(grpc.StatusCode), ids=lambda code: code.name)
def test_every_bare_status_has_a_class(code: grpc.StatusCode) -> None:
    """A proxy's status has no details: its code alone decides."""
    bare = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata())
    received = from_rpc_error(bare)
    expected = errors.BY_CODE[Code.__members__.get(code.name, Code.INTERNAL)]
    assert type(received) is expected
    assert received.message == code.name


def test_our_codes_are_those_of_grpc() -> None:
    numbers = {code.name: code.value[0] for code in grpc.StatusCode}
    assert {code.name: code.value for code in Code}.items() <= numbers.items()


def test_the_vocabulary_loads_no_grpc() -> None:
    program = "import protos.errors, sys; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_long_sentence_is_cut_so_that_its_status_fits_into_metadata() -> None:
    status = to_status(errors.InvalidArgumentError("x" * 20_000, field="image"))
    assert len(status.message) == MAX_MESSAGE_LENGTH
    assert status.ByteSize() < 2_000


def test_first_class_of_a_code_is_the_general_one() -> None:
    assert errors.BY_CODE[Code.INVALID_ARGUMENT] is errors.InvalidArgumentError
    assert errors.BY_CODE[Code.UNAVAILABLE] is errors.UnavailableError


def test_reasons_are_unique_and_the_docstring_lists_them_all() -> None:
    documented = re.findall(r"(\w+Error)\s+([A-Z_]+)\s+([A-Z_]+)$", errors.__doc__ or "", re.M)
    actual = [
        (cls.__name__, cls.code.name, cls.reason)
        for cls in errors._tree(ServiceError)
        if cls.__module__ == errors.__name__  # a service's own subclass crosses as its parent
    ]
    assert documented == actual
    assert len({reason for *_, reason in actual}) == len(actual)


def test_details_of_another_domain_are_not_ours() -> None:
    status = to_status(errors.OverloadedError("full"))
    info = status.details[0]
    info.value = info.value.replace(DOMAIN.encode(), b"somebody")
    sent = rpc_status.to_status(status)
    error = grpc.aio.AioRpcError(
        sent.code, grpc.aio.Metadata(), grpc.aio.Metadata(*sent.trailing_metadata)
    )
    assert type(from_rpc_error(error)) is errors.OverloadedError
