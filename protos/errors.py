"""The error vocabulary: one exception class for each reason, mapped to gRPC status both ways.

ServiceError                        INTERNAL             INTERNAL
├── InvalidArgumentError            INVALID_ARGUMENT     INVALID_FIELD
│   ├── UnsupportedFieldError       INVALID_ARGUMENT     UNSUPPORTED_FIELD
│   ├── InvalidImageError           INVALID_ARGUMENT     INVALID_IMAGE
│   ├── ImageTooLargeError          INVALID_ARGUMENT     IMAGE_TOO_LARGE
│   ├── ImageFetchError             INVALID_ARGUMENT     IMAGE_FETCH_FAILED
│   ├── PlaceholderMismatchError    INVALID_ARGUMENT     PLACEHOLDER_MISMATCH
│   └── InvalidTensorError          INVALID_ARGUMENT     INVALID_TENSOR
├── ContextLengthError              OUT_OF_RANGE         CONTEXT_LENGTH_EXCEEDED
├── ModelMismatchError              FAILED_PRECONDITION  MODEL_MISMATCH
├── UnauthenticatedError            UNAUTHENTICATED      UNAUTHENTICATED
├── AccessDeniedError               PERMISSION_DENIED    ACCESS_DENIED
├── NotFoundError                   NOT_FOUND            NOT_FOUND
├── OverloadedError                 RESOURCE_EXHAUSTED   QUEUE_FULL
├── DataLossError                   DATA_LOSS            CHECKSUM_MISMATCH
├── UnavailableError                UNAVAILABLE          SERVICE_UNAVAILABLE
│   └── EngineDeadError             UNAVAILABLE          ENGINE_DEAD
└── DeadlineError                   DEADLINE_EXCEEDED    DEADLINE_EXCEEDED

On the wire an error is a gRPC status whose details hold a google.rpc.ErrorInfo (the reason, in the
domain "internvl"), a BadRequest with the field's path where one field is at fault, and a RetryInfo
where trying again makes sense. A status without our ErrorInfo (a proxy's, grpc's own) becomes the
class that stands first for its code.
"""

from __future__ import annotations

from typing import ClassVar

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "internvl"
# A status travels in metadata of at most 16 KiB, and the sentence up to three times.
MAX_MESSAGE_LENGTH = 500
# Where a gRPC status keeps its google.rpc.Status, on every platform.
DETAILS_KEY = "grpc-status-details-bin"


class ServiceError(Exception):
    """A failure that its caller is told about: a sentence, the field at fault, when to try again.

    Attributes:
        message: one sentence that names the limit and the value.
        field: path of the request field at fault, e.g. "sampling.top_p"; empty when none is.
        retry_after: seconds after which trying again makes sense; None when it does not.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, field: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after = retry_after


class InvalidArgumentError(ServiceError):
    """A field of the request is missing, malformed or out of its range."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_FIELD"


class UnsupportedFieldError(InvalidArgumentError):
    """A field of the contract is set that this server does not support."""

    reason = "UNSUPPORTED_FIELD"


class InvalidImageError(InvalidArgumentError):
    """The bytes are not an image that we decode."""

    reason = "INVALID_IMAGE"


class ImageTooLargeError(InvalidArgumentError):
    """The image has too many bytes, pixels or tiles."""

    reason = "IMAGE_TOO_LARGE"


class ImageFetchError(InvalidArgumentError):
    """The image's URL could not be read."""

    reason = "IMAGE_FETCH_FAILED"


class PlaceholderMismatchError(InvalidArgumentError):
    """The places for images in a prompt are not those of its images."""

    reason = "PLACEHOLDER_MISMATCH"


class InvalidTensorError(InvalidArgumentError):
    """A tensor's spec or chunks contradict themselves."""

    reason = "INVALID_TENSOR"


class ContextLengthError(ServiceError):
    """Prompt and output do not fit into the model's context."""

    code = grpc.StatusCode.OUT_OF_RANGE
    reason = "CONTEXT_LENGTH_EXCEEDED"


class ModelMismatchError(ServiceError):
    """The two ends run different checkpoints."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "MODEL_MISMATCH"


class UnauthenticatedError(ServiceError):
    """The caller did not say who it is."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class AccessDeniedError(ServiceError):
    """The caller may not have this: a private address, a file outside the configured root."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "ACCESS_DENIED"


class NotFoundError(ServiceError):
    """There is no such model or path."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "NOT_FOUND"


class OverloadedError(ServiceError):
    """A bounded queue is full."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "QUEUE_FULL"


class DataLossError(ServiceError):
    """Bytes changed on their way."""

    code = grpc.StatusCode.DATA_LOSS
    reason = "CHECKSUM_MISMATCH"


class UnavailableError(ServiceError):
    """A service cannot be reached, or is stopping."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "SERVICE_UNAVAILABLE"


class EngineDeadError(UnavailableError):
    """The engine failed; its process will be restarted."""

    reason = "ENGINE_DEAD"


class DeadlineError(ServiceError):
    """The request's time is over."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


def _tree(cls: type[ServiceError]) -> list[type[ServiceError]]:
    return [cls, *(sub for child in cls.__subclasses__() for sub in _tree(child))]


BY_REASON = {cls.reason: cls for cls in _tree(ServiceError)}
# Reversed, so that the class that stands first for a code wins.
BY_CODE = {cls.code: cls for cls in reversed(_tree(ServiceError))}


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
    status = status_pb2.Status(code=error.code.value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return status


def from_rpc_error(error: grpc.aio.AioRpcError) -> ServiceError:
    """Returns the exception that a failed call stands for; the inverse of `to_status`."""
    details = _Details()
    for key, value in error.trailing_metadata():
        if key == DETAILS_KEY and isinstance(value, bytes):
            details = _unpack(status_pb2.Status.FromString(value))
    cls = BY_REASON.get(details.reason) or BY_CODE.get(error.code(), ServiceError)
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
