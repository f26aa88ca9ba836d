"""Bounds of what a request holds: each refusal names the field, the limit and the value."""

from __future__ import annotations

from protos.errors import InvalidArgumentError


def check_length(field: str, name: str, text: str, limit: int) -> None:
    if (length := len(text)) > limit:
        raise InvalidArgumentError(
            f"{name} has {length} characters; it must have at most {limit}", field=field
        )


def check_count(field: str, name: str, count: int, limit: int) -> None:
    if count > limit:
        raise InvalidArgumentError(
            f"the request has {count} {name}; at most {limit} are allowed", field=field
        )


def check_token_id(field: str, token_id: int, vocabulary_size: int) -> None:
    if not 0 <= token_id < vocabulary_size:
        raise InvalidArgumentError(
            f"a token id is {token_id}; it must be 0 to {vocabulary_size - 1}", field=field
        )
