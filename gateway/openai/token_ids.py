"""Token ids in a request: lists of many thousands, which are checked as a whole."""

from __future__ import annotations

from typing import Any

from gateway.openai.refusals import shown_kind
from protos.errors import InvalidArgumentError

MAX_INT32 = 2**31 - 1


def token_ids(value: list[Any], param: str) -> list[int]:
    """Returns a list that holds nothing but token ids, of a vocabulary of any size.

    Args:
        value: the list as JSON has it.
        param: its JSON path.

    Raises:
        InvalidArgumentError: an entry is none.
    """
    for index, entry in enumerate(value):
        if type(entry) is not int or not 0 <= entry <= MAX_INT32:
            raise InvalidArgumentError(
                f"a token id is {shown_kind(entry)};"
                f" it must be a whole number from 0 to {MAX_INT32}",
                field=f"{param}[{index}]",
            )
    return value
