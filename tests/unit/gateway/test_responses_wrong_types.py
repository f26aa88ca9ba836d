"""Values of any type at any field of /v1/responses, as `test_wrong_types` has them for chats."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.dialects.responses import parse
from gateway.services.messages import generate_start
from protos.errors import InvalidArgumentError
from tests.unit.gateway.test_wrong_types import (
    SAMPLES,
    Path,
    check_sentence,
    paths,
    values,
    with_value,
)

FULL: dict[str, Any] = {
    "model": "m",
    "instructions": "Be brief.",
    "input": [
        {"role": "system", "content": "a"},
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_text", "text": "b"},
                {
                    "type": "input_image",
                    "image_url": "data:,",
                    "detail": "low",
                    "max_dynamic_patch": 1,
                    "file_id": None,
                },
            ],
        },
        {"type": "reasoning", "id": "rs", "summary": []},
        {
            "role": "assistant",
            "content": [
                {"type": "output_text", "text": "c", "annotations": []},
                {"type": "refusal", "refusal": "d"},
            ],
        },
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "e"},
        {"type": "function_call_output", "output": [{"type": "input_text", "text": "f"}]},
    ],
    "stream": True,
    "stream_options": {"include_obfuscation": False},
    "max_output_tokens": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "include": ["message.output_text.logprobs"],
    "top_logprobs": 1,
    "text": {
        "format": {
            "type": "json_schema",
            "name": "x",
            "description": "y",
            "schema": {"type": "object"},
            "strict": True,
        },
        "verbosity": "low",
    },
    "tools": [
        {
            "type": "function",
            "name": "f",
            "description": "g",
            "parameters": {"type": "object"},
            "strict": True,
        }
    ],
    "tool_choice": {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "f"}],
    },
    "parallel_tool_calls": True,
    "truncation": "auto",
    "metadata": {"a": "b"},
    "user": "u",
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "seed": 1,
    "stop": ["a"],
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "top_k": 1,
    "min_p": 0.0,
    "ignore_eos": False,
    "skip_special_tokens": True,
    "stop_token_ids": [1],
    "min_tokens": 0,
    "logit_bias": {"5": 1.0},
    "priority": 0,
    "cache_salt": "s",
    "previous_response_id": None,
    "background": False,
}
SHORT: dict[str, Any] = {"input": "Hi", "tool_choice": {"type": "function", "name": "f"}}
SHORT["tools"] = [{"type": "function", "name": "f"}]
PLACES = [(document, path) for document in (FULL, SHORT) for path in paths(document)]


def send(document: Any) -> None:
    """Does all that the gateway does with a document until the LLM service has it."""
    try:
        call = parse(json.dumps(document).encode(), False)
    except InvalidArgumentError as error:
        check_sentence(error)
    else:
        (request,) = call.generations
        generate_start(request.fields)
        json.loads(call.echo)


def test_the_documents_are_right() -> None:
    for document in (FULL, SHORT):
        assert parse(json.dumps(document).encode(), True).generations


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(PLACES), values)
def test_any_value_anywhere_is_taken_or_refused_in_our_words(
    place: tuple[Any, Path], value: object
) -> None:
    send(with_value(*place, value))


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
