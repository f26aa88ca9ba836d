"""Requests for completions: prompts of all forms, the fields that are known, errors' paths."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.dialects.completions import CompletionCall, parse
from gateway.openai.completion_fields import COMPLETION, DETOKENIZE, TOKENIZE, TOKENIZE_CHAT
from gateway.openai.completions import MAX_PROMPT_COUNT, CompletionRequest
from gateway.openai.json_limits import MAX_TOKEN_VALUE_COUNT
from gateway.openai.known_fields import TOP_LEVEL, Hint, Refused, Section
from gateway.openai.request_model import RequestModel
from gateway.openai.tokenizing import (
    DetokenizeRequest,
    TokenizeChatRequest,
    TokenizeRequest,
    parse_detokenize_request,
    parse_tokenize_request,
)
from protos.errors import InvalidArgumentError, UnsupportedFieldError
from tests.unit.gateway.test_known_fields import printed

PAGE = Path(__file__).parents[3] / "docs" / "clients.md"
BEGIN, END = "<!-- the fields of completions -->\n", "<!-- their end -->\n"
MODELS: dict[Section, type[RequestModel]] = {
    COMPLETION: CompletionRequest,
    TOKENIZE: TokenizeRequest,
    TOKENIZE_CHAT: TokenizeChatRequest,
    DETOKENIZE: DetokenizeRequest,
}
# What is as in a chat is not printed twice.
OWN = Section(COMPLETION.title, *(row for row in COMPLETION.rows if row not in TOP_LEVEL.rows))
PRINTED = (OWN, TOKENIZE, DETOKENIZE)


def call(strict: bool = False, **fields: Any) -> CompletionCall:
    return parse(json.dumps({"prompt": "Once", **fields}).encode(), strict)


def refusal(strict: bool = False, **fields: Any) -> InvalidArgumentError:
    with pytest.raises(InvalidArgumentError) as caught:
        call(strict, **fields)
    return caught.value


def fields_of(**fields: Any) -> list[dict[str, Any]]:
    return [dict(each.fields) for each in call(**fields).generations]


def test_an_unset_field_stays_unset_but_the_limit() -> None:
    assert fields_of() == [{"text": "Once", "stop.max_token_count": 16}]
    assert fields_of(max_tokens=None) == fields_of()


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("", [{"text": ""}]),
        (["a", "b"], [{"text": "a"}, {"text": "b"}]),
        ([1, 2], [{"token_ids.ids": (1, 2)}]),
        ([[1, 2], [0]], [{"token_ids.ids": (1, 2)}, {"token_ids.ids": (0,)}]),
        (["a", [3]], [{"text": "a"}, {"token_ids.ids": (3,)}]),
        ([str(number) for number in range(MAX_PROMPT_COUNT)], None),
    ],
)
def test_a_prompt_has_four_forms(prompt: Any, prompts: list[dict[str, Any]] | None) -> None:
    prompts = prompts or [{"text": text} for text in prompt]
    expected = [{**each, "stop.max_token_count": 16} for each in prompts]
    assert fields_of(prompt=prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "param", "message"),
    [
        (None, "prompt", "a prompt is null; it must be a string or a list of token ids"),
        (5, "prompt", "a prompt is 5; it must be a string or a list of token ids"),
        ([], "prompt", "a prompt is an empty list; it must be a string or a list of token ids"),
        (["a", []], "prompt[1]", "a prompt is an empty list; it must be a string or a list of"),
        (["a", 5], "prompt[1]", "a prompt is 5; it must be a string or a list of token ids"),
        ([True], "prompt[0]", "a prompt is true; it must be a string or a list of token ids"),
        ([{"a": 1}], "prompt[0]", "a prompt is an object; it must be a string or a list of"),
        (
            [5, "a"],
            "prompt[1]",
            "a token id is a string; it must be a whole number from 0 to 2147483647",
        ),
        (
            [5, True],
            "prompt[1]",
            "a token id is true; it must be a whole number from 0 to 2147483647",
        ),
        (
            [[5, 2.0]],
            "prompt[0][1]",
            "a token id is 2.0; it must be a whole number from 0 to 2147483647",
        ),
        (
            [[5], [6, -1]],
            "prompt[1][1]",
            "a token id is -1; it must be a whole number from 0 to 2147483647",
        ),
        (
            [2**31],
            "prompt[0]",
            "a token id is 2147483648; it must be a whole number from 0 to 2147483647",
        ),
        (["a"] * (MAX_PROMPT_COUNT + 1), "prompt", "the request has 129 prompts; the limit is 128"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_prompt_of_another_form_is_refused(prompt: Any, param: str, message: str) -> None:
    error = refusal(prompt=prompt)
    assert error.field == param
    assert error.message.startswith(message)


def test_a_prompt_is_needed() -> None:
    with pytest.raises(InvalidArgumentError, match="the prompt is missing") as caught:
        parse(b"{}", False)
    assert caught.value.field == "prompt"


def test_many_tokens_are_read_at_a_cost_that_is_bounded() -> None:
    ids = list(range(100_000, 100_000 + MAX_TOKEN_VALUE_COUNT - 10))
    start = time.process_time()
    (fields,) = fields_of(prompt=ids)
    assert fields["token_ids.ids"] == tuple(ids)
    assert time.process_time() - start < 5
    with pytest.raises(InvalidArgumentError, match="the limit is 262144"):
        call(prompt=[*ids, *range(10)])


@pytest.mark.parametrize(
    ("fields", "path", "value"),
    [
        ({"max_tokens": -1}, "stop.max_token_count", None),
        ({"max_tokens": 2**40}, "stop.max_token_count", 2**31 - 1),
        ({"max_tokens": 0, "echo": True}, "stop.max_token_count", 1),
        ({"logprobs": 0}, "logprobs.top_count", 0),
        ({"logprobs": 5}, "logprobs.top_count", 5),
        ({"logprobs": 5}, "logprobs.prompt", None),
        ({"echo": True}, "logprobs.prompt", None),
        ({"echo": True, "logprobs": 0}, "logprobs.prompt", True),
        ({"echo": True, "prompt": [1]}, "logprobs.prompt", True),
        ({"echo": True, "prompt": [1]}, "logprobs.top_count", None),
        ({"echo": False, "logprobs": 1}, "logprobs.prompt", None),
        ({"n": 2, "best_of": 2}, "choice_count", 2),
        ({"n": 2, "best_of": 1}, "choice_count", 2),
        ({"stop": "x"}, "stop.strings", ["x"]),
        ({"logit_bias": {"7": -100}}, "sampling.logit_bias", [{"token_id": 7, "bias": -100.0}]),
        ({"guided_choice": ["a", "b"]}, "guided.regex", "a|b"),
        ({"response_format": {"type": "json_object"}}, "guided.json_object", {}),
        ({"priority": 3}, "priority", -3),
    ],
)
def test_a_value_goes_over_as_the_contract_has_it(
    fields: dict[str, Any], path: str, value: object
) -> None:
    assert fields_of(**fields)[0].get(path) == value


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 2}, "best_of"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"prompt": ["a"] * 65, "n": 2, "echo": True, "logprobs": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 0, "echo": False}, "max_tokens"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": 1}, "echo"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"guided_regex": "a", "guided_json": "{}"}, "guided_json"),
        ({"stop": [1]}, "stop[0]"),
    ],
)
def test_what_contradicts_itself_is_refused(fields: dict[str, Any], param: str) -> None:
    field = refusal(**fields).field
    assert field == param if "guided_json" not in fields else field in fields


@pytest.mark.parametrize(
    ("prompt", "index", "field", "param"),
    [
        ("a", 0, "text", "prompt"),
        ("a", 0, "prompt", "prompt"),
        (["a", "b"], 1, "text", "prompt[1]"),
        ([1, 2], 0, "token_ids.ids[1]", "prompt[1]"),
        ([[1], [2, 3]], 1, "token_ids.ids[1]", "prompt[1][1]"),
        ([[1], [2, 3]], 1, "token_ids.ids", "prompt[1]"),
        ("a", 0, "stop.strings[0]", "stop"),
        ("a", 0, "stop.max_token_count", "max_tokens"),
        ("a", 0, "logprobs.top_count", "logprobs"),
        ("a", 0, "logprobs.prompt", "echo"),
        ("a", 0, "sampling.logit_bias[0].bias", "logit_bias.7"),
        ("a", 0, "choice_count", "n"),
        ("a", 0, "expected_checkpoint", ""),
    ],
)
def test_an_error_names_what_the_client_wrote(
    prompt: Any, index: int, field: str, param: str
) -> None:
    asked = call(prompt=prompt, stop="x", logit_bias={"7": 101}, logprobs=9, echo=True)
    assert asked.generations[index].name_field(field) == param


@pytest.mark.parametrize("section", MODELS, ids=lambda section: section.title)
def test_what_is_served_is_what_is_read(section: Section) -> None:
    assert section.served == set(MODELS[section].model_fields)


@pytest.mark.parametrize("section", MODELS, ids=lambda section: section.title)
def test_a_field_has_one_row(section: Section) -> None:
    names = [name for row in section.rows for name in row.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "name", [name for row in COMPLETION.rows if isinstance(row, Refused) for name in row.names]
)
def test_a_refused_field_passes_with_the_values_of_its_row(name: str) -> None:
    row = COMPLETION.by_name[name]
    assert isinstance(row, Refused)
    for value in row.harmless:
        assert call(True, **{name: value}).ignored_fields is None
    error = refusal(False, **{name: {"a": 1}})
    assert isinstance(error, UnsupportedFieldError)
    assert error.field == name
    assert row.way_on in error.message
    assert "messages" not in row.way_on


def test_hints_pass() -> None:
    names = [name for row in COMPLETION.rows if isinstance(row, Hint) for name in row.names]
    assert (
        call(True, **dict.fromkeys(names, 5) | {"chat_template_kwargs": {}}).ignored_fields is None
    )


def test_unknown_fields_are_named_or_refused() -> None:
    options: dict[str, Any] = {"stream": True, "stream_options": {"x": 1}}
    assert call(wizardry=1, **options).ignored_fields == "wizardry, stream_options.x"
    assert refusal(True, wizardry=1).field == "wizardry"


def test_a_gap_is_refused_with_a_way_on() -> None:
    error = refusal(suffix="the end")
    assert error.field == "suffix"
    assert "fills no gaps" in error.message
    assert call(suffix="").ignored_fields is None


def test_questions_about_tokens() -> None:
    chat = parse_tokenize_request(b'{"messages": [{"role": "user", "content": "Hi"}]}')
    assert isinstance(chat, TokenizeChatRequest)
    assert isinstance(parse_tokenize_request(b'{"prompt": "Hi"}'), TokenizeRequest)
    assert parse_detokenize_request(b'{"tokens": [1, 2], "x": 1}').ignored_fields == "x"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": [1]}, "prompt"),
        ({"messages": []}, ""),
        ({"messages": 5}, "messages"),
        ({"messages": [], "prompt": "x"}, "prompt"),
        ({"prompt": "x", "add_special_tokens": "no"}, "add_special_tokens"),
        ({"messages": [], "return_token_strs": 1}, "return_token_strs"),
        ({"messages": [], "add_special_tokens": True}, "add_special_tokens"),
    ],
)
def test_a_wrong_question_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    if not param:
        parse_tokenize_request(json.dumps(body).encode())  # the service says what is wrong
        return
    with pytest.raises(InvalidArgumentError) as caught:
        parse_tokenize_request(json.dumps(body).encode())
    assert caught.value.field == param


@pytest.mark.parametrize(
    ("tokens", "param"), [("1", "tokens"), ([1, None], "tokens[1]"), (None, "tokens")]
)
def test_wrong_tokens_are_refused_by_name(tokens: Any, param: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_detokenize_request(json.dumps({"tokens": tokens}).encode())
    assert caught.value.field == param


def test_the_documentation_prints_the_tables() -> None:
    table = "\n".join(line for section in PRINTED for line in printed(section)) + "\n"
    page = PAGE.read_text(encoding="utf-8")
    assert page.partition(BEGIN)[2].partition(END)[0] == table, f"it must be:\n{table}"
