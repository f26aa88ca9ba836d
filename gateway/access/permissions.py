"""What a caller may ask for."""

from __future__ import annotations

from gateway.access.callers import Caller
from protos.errors import AccessDeniedError


def may_use_model(caller: Caller, name: str) -> bool:
    """Says whether a caller may use the model of this name."""
    return caller.policy.models is None or name in caller.policy.models


def check_model(caller: Caller, name: str) -> None:
    """Raises AccessDeniedError unless a caller may use the model that a request names.

    Of a request that names none it cannot be said which model it is for.
    """
    if may_use_model(caller, name):
        return
    asked = f"may not use the model {name[:100]!r}" if name else "must name its model"
    models = caller.policy.models or ()
    allowed = f"it may use {' and '.join(map(repr, models))}" if models else "it may use none"
    raise AccessDeniedError(f"the key {caller.name!r} {asked}; {allowed}", field="model")


def check_priority(caller: Caller, priority: int, field: str) -> None:
    """Raises AccessDeniedError unless a caller may give a request this priority.

    Lower ones go first; it is not 0, which a request has that gives none.
    """
    policy = caller.policy
    if "priority" not in policy.may_use:
        raise AccessDeniedError(
            f"the priority is {priority}; the key {caller.name!r} may give none", field=field
        )
    if priority < policy.most_urgent_priority:
        raise AccessDeniedError(
            f"the priority is {priority}; the most urgent of the key {caller.name!r} is"
            f" {policy.most_urgent_priority}",
            field=field,
        )


def check_file(caller: Caller, field: str) -> None:
    """Raises AccessDeniedError unless a caller may have files of the gateway's machine read."""
    if "file" not in caller.policy.may_use:
        raise AccessDeniedError(
            f"the image is a file:// URL, which the key {caller.name!r} may not use; a data: URL"
            " can hold the file instead",
            field=field,
        )
