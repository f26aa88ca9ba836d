"""Requests of Anthropic's dialect: what the services are asked for, and what refusals name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.dialects.messages import MESSAGES, MESSAGES_COUNT, MessagesCall
from gateway.generation import GenerationRequest
from gateway.services.messages import generate_start
from protos.errors import InvalidArgumentError, UnsupportedFieldError

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
SHOWN = {"type": "image", "source": {"type": "url", "url": "http://example.com/a.png"}}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"name": "weather", "description": "Of today.", "input_schema": SCHEMA}


def text(words: str, **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **fields}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def assistant(*content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(content)}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{name}", "name": name, "input": arguments}


def result(*content: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "toolu_a", "content": list(content), **fields}


def body(*messages: Any, **fields: Any) -> bytes:
    given = messages or ({"role": "user", "content": "Hi"},)
    return json.dumps({"max_tokens": 9, "messages": given, **fields}).encode()


def parsed(*messages: Any, strict_fields: bool = False, **fields: Any) -> MessagesCall:
    parsed_call = MESSAGES.parse(body(*messages, **fields), strict_fields)
    assert isinstance(parsed_call, MessagesCall)
    return parsed_call


def generation(*messages: Any, **fields: Any) -> GenerationRequest:
    (request,) = parsed(*messages, **fields).generations
    generate_start(request.fields)
    return request


def turns(*messages: Any, **fields: Any) -> list[Any]:
    turns: list[Any] = generation(*messages, **fields).fields["chat.messages"]
    return turns


def refusal(*messages: Any, strict_fields: bool = False, **fields: Any) -> InvalidArgumentError:
    with pytest.raises(InvalidArgumentError) as caught:
        parsed(*messages, strict_fields=strict_fields, **fields)
    return caught.value


def test_texts_and_images_stand_in_their_order() -> None:
    assert turns(
        user(text("a"), IMAGE, text("b", cache_control={"type": "ephemeral"})),
        assistant({"type": "thinking", "thinking": "hm", "signature": "x"}, text("c")),
        {"role": "user", "content": "d"},
        system=[text("be"), text("brief")],
    ) == [
        {"role": "ROLE_SYSTEM", "parts": [{"text": "be"}, {"text": "brief"}]},
        {"role": "ROLE_USER", "parts": [{"text": "a"}, {"image": {}}, {"text": "b"}]},
        {"role": "ROLE_ASSISTANT", "parts": [{"text": "c"}]},
        {"role": "ROLE_USER", "parts": [{"text": "d"}]},
    ]


def test_neighbours_of_one_role_are_one_turn() -> None:
    later = {"role": "system", "content": "now in French"}
    assert turns(user(text("a")), user(IMAGE), later, assistant(text("b")), assistant()) == [
        {"role": "ROLE_USER", "parts": [{"text": "a"}, {"image": {}}]},
        {"role": "ROLE_SYSTEM", "parts": [{"text": "now in French"}]},
        {"role": "ROLE_ASSISTANT", "parts": [{"text": "b"}]},
    ]


def test_what_is_only_thought_is_a_turn_without_words() -> None:
    thought = assistant({"type": "redacted_thinking", "data": "aGk="})
    assert turns(user(text("a")), thought, user(text("b")))[1] == {
        "role": "ROLE_ASSISTANT",
        "parts": [],
    }


def test_calls_and_results_are_turns_and_images_of_results_are_shown_by_the_user() -> None:
    assert turns(
        user(text("a")),
        assistant(text("b"), call("look", at="x"), call("count")),
        user(
            result(text("seen:"), SHOWN), result(text("3"), is_error=True), IMAGE, text("and now?")
        ),
        assistant(call("look")),
        user(result(SHOWN)),
        assistant(call("look")),
        user({"type": "tool_result", "tool_use_id": "toolu_b"}),
    ) == [
        {"role": "ROLE_USER", "parts": [{"text": "a"}]},
        {
            "role": "ROLE_ASSISTANT",
            "parts": [{"text": "b"}],
            "tool_calls": [
                {"name": "look", "arguments": '{"at": "x"}'},
                {"name": "count", "arguments": "{}"},
            ],
        },
        {"role": "ROLE_TOOL", "parts": [{"text": "seen:"}]},
        {"role": "ROLE_TOOL", "parts": [{"text": "Error:"}, {"text": "3"}]},
        {"role": "ROLE_USER", "parts": [{"image": {}}, {"image": {}}, {"text": "and now?"}]},
        {
            "role": "ROLE_ASSISTANT",
            "parts": [],
            "tool_calls": [{"name": "look", "arguments": "{}"}],
        },
        {"role": "ROLE_TOOL", "parts": []},
        {"role": "ROLE_USER", "parts": [{"image": {}}]},
        {
            "role": "ROLE_ASSISTANT",
            "parts": [],
            "tool_calls": [{"name": "look", "arguments": "{}"}],
        },
        {"role": "ROLE_TOOL", "parts": []},
    ]


def test_images_are_in_the_order_of_the_turns_with_their_places() -> None:
    capped = {**IMAGE, "max_dynamic_patch": 2, "detail": "low"}
    request = generation(user(capped), assistant(call("look")), user(result(SHOWN), IMAGE))
    first, second, third = request.images
    assert (first.source.url, first.source.max_dynamic_patch) == ("data:;base64,aGk=", 2)
    assert first.name_field("url") == "messages[0].content[0].source.data"
    assert first.name_field("max_dynamic_patch") == "messages[0].content[0].max_dynamic_patch"
    assert second.source.url == "http://example.com/a.png"
    assert second.name_field("url") == "messages[2].content[0].content[0].source.url"
    assert third.name_field("url") == "messages[2].content[1].source.data"


def test_a_name_of_an_image_that_was_taken_out_is_its_url() -> None:
    attached = {"type": "image", "source": {"type": "base64", "data": "attached:0:1"}}
    assert generation(user(attached)).images[0].source.url == "attached:0:1"


def test_options_are_those_of_the_contract() -> None:
    fields = generation(
        max_tokens=5,
        stop_sequences=["a", "b"],
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        seed=2**64 - 1,
        min_p=0.1,
        repetition_penalty=1.1,
        skip_special_tokens=False,
        cache_salt="s",
        priority=3,
    ).fields
    start = generate_start(fields)
    assert (start.stop.max_token_count, list(start.stop.strings)) == (5, ["a", "b"])
    sampling = start.sampling
    assert [round(sampling.temperature, 3), round(sampling.top_p, 3), sampling.top_k] == [
        0.5,
        0.9,
        7,
    ]
    assert (sampling.seed, round(sampling.min_p, 3)) == (-1, 0.1)
    assert round(sampling.repetition_penalty, 3) == 1.1
    assert (start.skip_special_tokens, start.cache_salt, start.priority) == (False, "s", -3)
    assert not generate_start(generation(top_k=0).fields).sampling.HasField("top_k")
    assert set(generation().fields) == {"chat.messages", "stop.max_token_count"}


def test_tools_are_defined_and_strict_ones_are_closed() -> None:
    tools = [TOOL, {**TOOL, "name": "other", "type": "custom", "strict": True}]
    defined = generation(tools=tools).fields["chat.tools"]
    assert defined[0] == {
        "name": "weather",
        "description": "Of today.",
        "parameters": json.dumps(SCHEMA),
        "strict": False,
    }
    assert defined[1]["strict"] is True
    assert json.loads(defined[1]["parameters"]) == {**SCHEMA, "additionalProperties": False}


@pytest.mark.parametrize(
    ("choice", "guide"),
    [
        (None, ("TOOL_CHOICE_AUTO", (), False)),
        ({"type": "auto"}, ("TOOL_CHOICE_AUTO", (), False)),
        (
            {"type": "auto", "disable_parallel_tool_use": True},
            ("TOOL_CHOICE_AUTO", (), True),
        ),
        ({"type": "any"}, ("TOOL_CHOICE_REQUIRED", (), False)),
        (
            {"type": "any", "disable_parallel_tool_use": True},
            ("TOOL_CHOICE_REQUIRED", (), True),
        ),
        ({"type": "tool", "name": "weather"}, ("TOOL_CHOICE_REQUIRED", ("weather",), True)),
    ],
)
def test_the_choice_of_tools(choice: Any, guide: tuple[str, tuple[str, ...], bool]) -> None:
    fields = generation(tools=[TOOL], tool_choice=choice).fields
    assert tuple(fields["guided.tool_calls"].values()) == guide


def test_without_a_choice_the_model_does_not_learn_of_tools() -> None:
    fields = generation(tools=[TOOL], tool_choice={"type": "none"}).fields
    assert set(fields) == {"chat.messages", "stop.max_token_count"}
    assert "guided.tool_calls" not in generation(tools=[]).fields


@pytest.mark.parametrize(
    "fields",
    [lambda form: {"output_config": {"format": form}}, lambda form: {"output_format": form}],
)
def test_the_form_of_an_answer_is_closed(fields: Any) -> None:
    given = fields({"type": "json_schema", "schema": SCHEMA})
    schema = json.loads(generation(**given).fields["guided.json_schema"])
    assert schema == {**SCHEMA, "additionalProperties": False}


def test_effort_alone_is_no_form() -> None:
    request = parsed(output_config={"effort": "low"}, thinking={"type": "adaptive"})
    assert "guided.json_schema" not in request.generations[0].fields
    assert request.ignored_fields is None


HISTORY = (
    user(text("a"), IMAGE, text("b")),
    assistant({"type": "thinking"}, text("c"), call("look"), call("count")),
    user(result(text("d"), SHOWN, text("e")), result(text("f")), text("g")),
)


@pytest.mark.parametrize(
    ("field", "path"),
    [
        ("chat.messages", "messages"),
        ("chat.messages[0]", "system"),
        ("chat.messages[0].parts[0].text", "system"),
        ("chat.messages[1]", "messages[0]"),
        ("chat.messages[1].parts[0].text", "messages[0].content[0].text"),
        ("chat.messages[1].parts[1].image", "messages[0].content[1]"),
        ("chat.messages[2].parts[0].text", "messages[1].content[1].text"),
        ("chat.messages[2].tool_calls[1].name", "messages[1].content[3].name"),
        ("chat.messages[2].tool_calls[0].arguments", "messages[1].content[2].input"),
        ("chat.messages[3].parts[1].text", "messages[2].content[0].content[2].text"),
        ("chat.messages[4].parts[0].text", "messages[2].content[1].content"),
        ("chat.messages[5].parts[0].image", "messages[2].content[0].content[1]"),
        ("chat.messages[5].parts[1].text", "messages[2].content[2].text"),
        ("chat.messages[9]", "messages"),
        ("chat.ending", "messages[2]"),
        ("images", "messages"),
        ("images[0]", "messages[0].content[1]"),
        ("images[1].content_sha256", "messages[2].content[0].content[1]"),
        ("chat.tools[0].parameters", "tools[0].input_schema"),
        ("chat.tools[0].name", "tools[0].name"),
        ("guided.tool_calls", "tool_choice"),
        ("guided.tool_calls.names[0]", "tool_choice.name"),
        ("guided.json_schema", "output_config.format.schema"),
        ("stop.strings[1]", "stop_sequences[1]"),
        ("stop.max_token_count", "max_tokens"),
        ("sampling.temperature", "temperature"),
        ("expected_checkpoint", ""),
    ],
)
def test_a_services_field_is_named_as_the_client_wrote_it(field: str, path: str) -> None:
    request = generation(*HISTORY, system="be brief", tools=[TOOL])
    assert request.name_field(field) == path


def test_a_lone_text_is_named_by_its_message() -> None:
    assert generation().name_field("chat.messages[0].parts[0].text") == "messages[0].content"


def test_a_count_needs_no_limit_and_asks_for_the_prompt_alone() -> None:
    given = {"messages": [user(IMAGE)], "tools": [TOOL], "thinking": {"type": "adaptive"}}
    (request,) = MESSAGES_COUNT.parse(json.dumps(given).encode(), True).generations
    assert set(request.fields) == {"chat.messages", "chat.tools", "guided.tool_calls"}
    assert len(request.images) == 1
    assert request.name_field("chat.tools[0].name") == "tools[0].name"


@pytest.mark.parametrize(
    ("messages", "fields", "path", "sentence"),
    [
        ((), {"max_tokens": None}, "max_tokens", "must be a whole number"),
        ((), {"messages": "Hi"}, "messages", "must be a list"),
        (({"role": "user"},), {}, "messages[0].content", "is missing"),
        ((user("a"),), {}, "messages[0].content[0]", "must be an object"),
        ((user({"type": "text"}),), {}, "messages[0].content[0].text", "has no text"),
        ((user({"type": "image"}),), {}, "messages[0].content[0].source", "has no source"),
        (
            (user({"type": "image", "source": {"type": "base64"}}),),
            {},
            "messages[0].content[0].source.data",
            "the image is missing",
        ),
        (
            (assistant({"type": "tool_use", "name": "a"}),),
            {},
            "messages[0].content[0].input",
            "has no input",
        ),
        (
            (assistant(IMAGE),),
            {},
            "messages[0].content[0].type",
            "a message of the assistant may have blocks of 'text', 'tool_use', 'thinking',"
            " 'redacted_thinking', not of 'image'",
        ),
        ((user(call("a")),), {}, "messages[0].content[0].type", "not of 'tool_use'"),
        (
            ({"role": "system", "content": [IMAGE]},),
            {},
            "messages[0].content[0].type",
            "may have blocks of 'text', not of 'image'",
        ),
        (
            (user(result(call("a"))),),
            {},
            "messages[0].content[0].content[0].type",
            "must be 'text' or 'image'",
        ),
        ((), {"tool_choice": {"type": "any"}}, "tool_choice", "no tools are given"),
        (
            (),
            {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}},
            "tool_choice",
            "the tool 'x' is chosen, but it is not among the tools",
        ),
        ((), {"tool_choice": {"type": "tool"}}, "tool_choice.name", "names none"),
        ((), {"tools": [{"name": "a"}]}, "tools[0].input_schema", "is missing"),
        ((), {"stop_sequences": [5]}, "stop_sequences[0]", "a stop string is 5"),
    ],
)
def test_a_malformed_field_is_named(
    messages: tuple[Any, ...], fields: dict[str, Any], path: str, sentence: str
) -> None:
    error = refusal(*messages, **fields)
    assert error.field == path
    assert sentence in error.message


@pytest.mark.parametrize(
    ("messages", "fields", "path", "sentence"),
    [
        (
            (user({"type": "document", "source": {"type": "text"}}),),
            {},
            "messages[0].content[0].type",
            "this server has no blocks of the type 'document'; send its text, or one picture",
        ),
        (
            (user(result({"type": "search_result"})),),
            {},
            "messages[0].content[0].content[0].type",
            "send it as a block of the type 'text'",
        ),
        (
            (assistant({"type": "server_tool_use"}),),
            {},
            "messages[0].content[0].type",
            "leave it out, or put what it says into a block of the type 'text'",
        ),
        (
            (user({"type": "image", "source": {"type": "file", "file_id": "x"}}),),
            {},
            "messages[0].content[0].source.type",
            "send the picture itself as 'base64' or 'url'",
        ),
        (
            (),
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            "tools[0].type",
            "this server has no tools of the type 'web_search_20250305'; describe a tool",
        ),
        ((), {"mcp_servers": [{"url": "x"}]}, "mcp_servers", "describe their tools in 'tools'"),
        ((), {"max_completion_tokens": 5}, "max_completion_tokens", "use 'max_tokens'"),
    ],
)
def test_what_is_not_served_is_refused_with_a_way_on(
    messages: tuple[Any, ...], fields: dict[str, Any], path: str, sentence: str
) -> None:
    error = refusal(*messages, **fields)
    assert isinstance(error, UnsupportedFieldError)
    assert error.field == path
    assert sentence in error.message


def test_unknown_fields_are_named_or_refused_but_not_in_messages() -> None:
    history = user(text("a", something_new=1))
    fields: dict[str, Any] = {"something_new": 1, "tools": [{**TOOL, "something_new": 2}]}
    assert parsed(history, **fields).ignored_fields == "something_new, tools[0].something_new"
    assert refusal(history, strict_fields=True, **fields).field == "something_new"
    assert parsed(history, strict_fields=True).ignored_fields is None
