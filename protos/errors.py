"""The error vocabulary: one exception class for each reason, with its canonical code.

ServiceError                        INTERNAL             INTERNAL
├── NonFiniteError                  INTERNAL             NON_FINITE
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

Nothing here knows gRPC, so tiling or sampling may raise an error at no cost; `status.py` maps each
to its status and back.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar


class Code(Enum):
    """The codes of google.rpc.Code that our errors have, by their canonical names and numbers."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    OUT_OF_RANGE = 11
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class ServiceError(Exception):
    """A failure that its caller is told about: a sentence, the field at fault, when to try again.

    Attributes:
        message: one sentence that names the limit and the value.
        field: path of the request field at fault, e.g. "sampling.top_p"; empty when none is.
        retry_after: seconds after which trying again makes sense; None when it does not.
    """

    code: ClassVar[Code] = Code.INTERNAL
    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, field: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after = retry_after


class NonFiniteError(ServiceError):
    """The model computed NaN or infinity where it must give numbers."""

    reason = "NON_FINITE"


class InvalidArgumentError(ServiceError):
    """A field of the request is missing, malformed or out of its range."""

    code = Code.INVALID_ARGUMENT
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
    """The prompt does not fit into the model's context."""

    code = Code.OUT_OF_RANGE
    reason = "CONTEXT_LENGTH_EXCEEDED"

    @classmethod
    def of_prompt(
        cls, length: str, max_context_token_count: int, *, field: str
    ) -> ContextLengthError:
        """Returns the refusal of a prompt that a model cannot read.

        Clients know it by its words, whatever its code is: LangChain looks for "prompt is too
        long", litellm for "This model's maximum context length is".

        Args:
            length: a clause that says how long it is, e.g. "it has 9 tokens".
            max_context_token_count: most tokens of prompt and output together.
            field: path of the field that holds the prompt.
        """
        return cls(
            f"the prompt is too long: {length}. This model's maximum context length is"
            f" {max_context_token_count} tokens; shorten the text, or send fewer images or"
            " tiles",
            field=field,
        )


class ModelMismatchError(ServiceError):
    """The two ends run different checkpoints."""

    code = Code.FAILED_PRECONDITION
    reason = "MODEL_MISMATCH"


class UnauthenticatedError(ServiceError):
    """The caller did not say who it is."""

    code = Code.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class AccessDeniedError(ServiceError):
    """The caller may not have this: a private address, a file outside the configured root."""

    code = Code.PERMISSION_DENIED
    reason = "ACCESS_DENIED"


class NotFoundError(ServiceError):
    """There is no such model or path."""

    code = Code.NOT_FOUND
    reason = "NOT_FOUND"


class OverloadedError(ServiceError):
    """A bounded queue is full."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "QUEUE_FULL"


class DataLossError(ServiceError):
    """Bytes changed on their way."""

    code = Code.DATA_LOSS
    reason = "CHECKSUM_MISMATCH"


class UnavailableError(ServiceError):
    """A service cannot be reached, or is stopping."""

    code = Code.UNAVAILABLE
    reason = "SERVICE_UNAVAILABLE"


class EngineDeadError(UnavailableError):
    """The engine failed; its process will be restarted."""

    reason = "ENGINE_DEAD"


class DeadlineError(ServiceError):
    """The request's time is over."""

    code = Code.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


def _tree(cls: type[ServiceError]) -> list[type[ServiceError]]:
    return [cls, *(sub for child in cls.__subclasses__() for sub in _tree(child))]


BY_REASON = {cls.reason: cls for cls in _tree(ServiceError)}
# Reversed, so that the class that stands first for a code wins.
BY_CODE = {cls.code: cls for cls in reversed(_tree(ServiceError))}
