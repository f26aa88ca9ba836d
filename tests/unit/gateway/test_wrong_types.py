"""Values of any type at any field: whatever is said of them, we say it, and never pydantic."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.fields import CHAT
from gateway.openai.requests import parse_chat_request
from gateway.services.messages import generate_start
from protos.errors import InvalidArgumentError

# Each served field of each kind of object, and some that are not served.
FULL: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "a"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "b"},
                {
                    "type": "image_url",
                    "image_url": {"url": "data:,", "detail": "low", "max_dynamic_patch": 1},
                },
                {"type": "image_url", "image_url": "data:,"},
            ],
            "name": "c",
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
            "function_call": {"name": "f", "arguments": {}},
            "audio": None,
        },
        {"role": "tool", "content": "d"},
    ],
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": False},
    "max_completion_tokens": 1,
    "max_tokens": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "seed": 1,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "stop": ["a"],
    "n": 1,
    "logprobs": True,
    "top_logprobs": 1,
    "logit_bias": {"5": 1.0},
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "x", "description": "y", "schema": {}, "strict": True},
    },
    "top_k": 1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "stop_token_ids": [1],
    "min_tokens": 0,
    "ignore_eos": False,
    "skip_special_tokens": True,
    "priority": 0,
    "cache_salt": "s",
    "structured_outputs": None,
    "add_generation_prompt": False,
    "continue_final_message": False,
    "tools": [
        {
            "type": "function",
            "function": {"name": "f", "description": "g", "parameters": {}, "strict": True},
        },
    ],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "parallel_tool_calls": True,
    "functions": None,
    "function_call": None,
    "chat_template_kwargs": {},
    "metadata": {},
}
FORM: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hi"}],
    "structured_outputs": {
        "json": None,
        "regex": "a",
        "choice": None,
        "grammar": None,
        "json_object": False,
    },
    "guided_json": None,
    "guided_regex": None,
    "guided_choice": None,
    "guided_grammar": None,
    "functions": [{"name": "f", "parameters": {}}],
    "function_call": {"name": "f"},
}
ALLOWED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hi"}],
    "tools": [{"function": {"name": "f"}}],
    "tool_choice": {
        "type": "allowed_tools",
        "allowed_tools": {
            "mode": "auto",
            "tools": [{"type": "function", "function": {"name": "f"}}],
        },
    },
    "guided_choice": ["a", "b"],
}
Path = tuple[str | int, ...]


def paths(value: object, above: Path = ()) -> Iterator[Path]:
    """Yields the way to everything in a document, itself included."""
    yield above
    members: Any = ()
    if isinstance(value, dict):
        members = value.items()
    elif isinstance(value, list):
        members = enumerate(value)
    for key, inner in members:
        yield from paths(inner, (*above, key))


def with_value(document: Any, path: Path, value: object) -> Any:
    """Returns a copy in which something else stands at a place."""
    if not path:
        return value
    copied: Any = copy.copy(document)
    copied[path[0]] = with_value(document[path[0]], path[1:], value)
    return copied


scalars = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, -1, 2**31, -(2**63), 2**64, 10**400, 1e300, 0.5])
    | st.sampled_from(["", "secret", "user", "text", "image_url", "json_schema", "x" * 200])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["", "type", "url", "name", "a.b"]), inner, max_size=2)
    ),
    max_leaves=4,
)
PLACES = [(document, path) for document in (FULL, FORM, ALLOWED) for path in paths(document)]
# What pydantic says of itself and of Python, and what a path looks like.
FOREIGN = re.compile(
    r"Input should|valid |instance of|after validation|Value error|[Dd]ictionary|None|True|False"
    r"|pydantic|validator|[A-Za-z]\w*[_.\[]\w"
)


def check_sentence(error: InvalidArgumentError) -> None:
    """Makes sure that a refusal is a sentence of ours: quoted are values and names."""
    assert not FOREIGN.search(re.sub(r"(?<!\w)'[^']*'", "", error.message)), error.message
    assert error.message
    assert not error.message[0].isupper()
    assert len(error.message) < 400
    assert len(error.field) <= 200


def send(document: Any) -> None:
    """Does all that the gateway does with a document until the LLM service has it."""
    try:
        request = parse_chat_request(json.dumps(document).encode())
    except InvalidArgumentError as error:
        check_sentence(error)
    else:
        generate_start(CHAT.values(request))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(PLACES), values)
def test_any_value_anywhere_is_taken_or_refused_in_our_words(
    place: tuple[Any, Path], value: object
) -> None:
    send(with_value(*place, value))


SAMPLES: list[Any] = [
    *(None, True, False, 0, -1, 5, 2**40, -(10**30), 0.5, -0.5, 1e300),
    *("", "secret", "user", "none", "text", "1", "\ufffd\x00"),
    *([], [None], ["secret"], [5], [{}], [["text"]], [{"type": "text"}], [{"type": "video_url"}]),
    *({}, {"a": "secret"}, {"a.b": 1}, {"type": "text"}, {"url": 5}, {"name": None}),
]


def test_each_type_at_each_field() -> None:
    for document, path in PLACES:
        for value in SAMPLES:
            send(with_value(document, path, value))


def test_a_field_that_is_missing() -> None:
    for document, path in PLACES:
        if path and isinstance(path[-1], str):
            copied: Any = copy.deepcopy(document)
            node = copied
            for key in path[:-1]:
                node = node[key]
            del node[path[-1]]
            send(copied)
