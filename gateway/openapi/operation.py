"""What one path does, said where it is served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from gateway.openai.known_fields import Section

# Statuses of errors, and when they come.
BAD_REQUEST = "A field is malformed, out of its range or not served; `param` names it."
OF_ALL = {
    "503": "A service is away, or the gateway is stopping; Retry-After says when to try again.",
}
OF_KEYS = {
    "401": "There is no API key of this server's in the request.",
    "403": "The API key does not allow it.",
    "429": "The API key's limit is reached; Retry-After says when to try again.",
}
OF_QUESTIONS = {
    "404": "There is no such model.",
    "504": "A service did not answer in time.",
}
OF_BODIES = {
    "400": BAD_REQUEST,
    "403": "A web page of an origin that is not allowed has sent it.",
    "404": "There is no such model.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is compressed.",
    "417": "The request expects what this server does not know.",
    "429": "Too much is in flight; Retry-After says when to try again.",
    "500": "A fault of the server; its log has it.",
    "504": "The answer was not ready in time.",
}


@dataclass(frozen=True)
class Parameter:
    """A parameter of a path or a query.

    Attributes:
        name: its name.
        place: where it stands, "path" or "query"; those of a path are required.
        description: what it means.
        schema: its JSON Schema.
        example: a value that can be sent.
        required: whether it must be given.
    """

    name: str
    place: str
    description: str
    schema: Mapping[str, Any]
    example: Any
    required: bool = False


@dataclass(frozen=True)
class Operation:
    """What one method of a path does.

    Attributes:
        summary: in a few words.
        answer: type of the JSON of its answer: a TypedDict or another type that pydantic knows.
        request: model that reads its body, or several; None: it has none.
        event: type of the data of an event, where the answer may be a stream of these.
        last_word: what the last event of a stream says instead; empty: its data is like the others.
        names_events: whether each event has its name in a line of its own.
        examples: bodies by what they show; all can be sent as they stand.
        parameters: of the path and the query.
        errors: descriptions of the statuses that tell of an error.
        sections: tables of known fields, which describe those of models.
        error: type of the JSON of an error; None: that of all other paths.
        description: in Markdown.
        unready: whether 503 has the answer's type, not an error's.
    """

    summary: str
    answer: Any
    request: Any = None
    event: Any = None
    last_word: str = ""
    names_events: bool = False
    examples: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    parameters: tuple[Parameter, ...] = ()
    errors: Mapping[str, str] = field(default_factory=dict)
    sections: Mapping[type[BaseModel], Section] = field(default_factory=dict)
    error: Any = None
    description: str = ""
    unready: bool = False
