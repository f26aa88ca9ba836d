"""Errors as gRPC status, in both directions.

On the wire an error is a gRPC status whose details hold a google.rpc.ErrorInfo (the reason, in the
domain "internvl"), a BadRequest with the field's path where one field is at fault, and a RetryInfo
where trying again makes sense. A status without our ErrorInfo (a proxy's, grpc's own) becomes the
class that stands first for its code.
"""

from __future__ import annotations

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from protos.errors import BY_CODE, BY_REASON, Code, ServiceError

DOMAIN = "internvl"
# A status travels in metadata of at most 16 KiB, and the sentence up to three times.
MAX_MESSAGE_LENGTH = 500
# Where a gRPC status keeps its google.rpc.Status, on every platform.
DETAILS_KEY = "grpc-status-details-bin"


def to_status(error: ServiceError) -> status_pb2.Status:
    """Returns the google.rpc.Status of an error: code, message and details."""
    message = error.message[:MAX_MESSAGE_LENGTH]
    details = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=message
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=error.code.value, message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return status


def from_rpc_error(error: grpc.aio.AioRpcError) -> ServiceError:
    """Returns the exception that a failed call stands for; the inverse of `to_status`."""
    details = _Details()
    for key, value in error.trailing_metadata():
        if key == DETAILS_KEY and isinstance(value, bytes):
            details = _unpack(status_pb2.Status.FromString(value))
    cls = BY_REASON.get(details.reason) or BY_CODE.get(_code(error.code()), ServiceError)
    message = error.details() or error.code().name
    return cls(message, field=details.field, retry_after=details.retry_after)


class _Details:
    reason = ""
    field = ""
    retry_after: float | None = None


def _unpack(status: status_pb2.Status) -> _Details:
    found = _Details()
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info) and info.domain == DOMAIN:
            found.reason = info.reason
        elif detail.Unpack(bad_request) and bad_request.field_violations:
            found.field = bad_request.field_violations[0].field
        elif detail.Unpack(retry):
            found.retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    return found


def _code(code: grpc.StatusCode) -> Code:
    """Returns our code for a status code; INTERNAL for those that no error of ours has."""
    return Code.__members__.get(code.name, Code.INTERNAL)
