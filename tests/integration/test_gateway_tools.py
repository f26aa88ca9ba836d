"""Tools over HTTP: what reaches the LLM service, and what the openai client makes of the calls."""

from __future__ import annotations

import json
from typing import Any

import openai
import pydantic
import pytest
from google.protobuf.json_format import MessageToDict

from protos.errors import InvalidArgumentError
from protos.internvl.v1 import llm_pb2
from tests.fakes import MODEL, Gateway, ScriptedLLM, stack

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "Of today.", "parameters": SCHEMA},
}
TIME: dict[str, Any] = {"type": "function", "function": {"name": "mcp.clock/v1:now"}}
TOOLS: list[Any] = [WEATHER, TIME]
PICTURE: Any = {
    "role": "user",
    "content": [
        {"type": "text", "text": "Where is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
    ],
}
PIECES = ['{"city"', ': "Ulm"', "}"]
CALLS = [("weather", PIECES), ("mcp.clock/v1:now", ["{}"])]


def connect(gateway: Gateway) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)


def silent(*calls: Any, **settings: Any) -> ScriptedLLM:
    """Returns a service that makes calls and says nothing."""
    return ScriptedLLM(texts=[], calls=calls, **settings)


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


async def started(**body: Any) -> llm_pb2.GenerateStart:
    """Returns what reaches the LLM service of a request that is answered."""
    async with stack(llm=silent(("weather", ["{}"]))) as gateway:
        status, answer = await gateway.chat(**body)
    assert status == 200, answer
    return gateway.llm.starts[0]


async def refusal(**body: Any) -> tuple[str, str]:
    """Returns path and sentence of a request that no service hears of."""
    async with stack() as gateway:
        status, answer = await gateway.chat(**body)
        assert not gateway.llm.starts
    assert status == 400
    return answer["error"]["param"], answer["error"]["message"]


async def test_definitions_go_over() -> None:
    start = await started(tools=TOOLS)
    first, second = start.chat.tools
    assert (first.name, first.description, first.strict) == ("weather", "Of today.", False)
    assert json.loads(first.parameters) == SCHEMA
    assert (second.name, second.description, second.parameters) == ("mcp.clock/v1:now", "", "")


async def test_a_data_url_that_is_no_picture_is_text() -> None:
    icon = {"url": "data:image/png;base64,iVBORw0KGgo="}
    schema = {"type": "object", "properties": {"icon": {"default": icon}}}
    call = {"id": "a", "type": "function", "function": {"name": "show", "arguments": icon}}
    start = await started(
        messages=[PICTURE, {"role": "assistant", "tool_calls": [call]}, PICTURE],
        tools=[{"type": "function", "function": {"name": "show", "parameters": schema}}],
    )
    assert json.loads(start.chat.tools[0].parameters) == schema
    assert json.loads(start.chat.messages[1].tool_calls[0].arguments) == icon
    assert len(start.images) == 2


async def test_a_strict_definition_is_closed() -> None:
    start = await started(tools=[named("f"), {"function": {**WEATHER["function"], "strict": True}}])
    assert [tool.strict for tool in start.chat.tools] == [False, True]
    assert json.loads(start.chat.tools[1].parameters) == {**SCHEMA, "additionalProperties": False}


ALLOWED = {"mode": "required", "tools": [named("weather")]}


@pytest.mark.parametrize(
    ("fields", "guide"),
    [
        ({}, {"choice": "TOOL_CHOICE_AUTO"}),
        ({"tool_choice": None}, {"choice": "TOOL_CHOICE_AUTO"}),
        ({"tool_choice": "auto"}, {"choice": "TOOL_CHOICE_AUTO"}),
        ({"tool_choice": {"type": "auto"}}, {"choice": "TOOL_CHOICE_AUTO"}),
        ({"tool_choice": "required"}, {"choice": "TOOL_CHOICE_REQUIRED"}),
        ({"parallel_tool_calls": True}, {"choice": "TOOL_CHOICE_AUTO"}),
        ({"parallel_tool_calls": False}, {"choice": "TOOL_CHOICE_AUTO", "single": True}),
        (
            {"tool_choice": named("weather")},
            {"choice": "TOOL_CHOICE_REQUIRED", "names": ["weather"], "single": True},
        ),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": ALLOWED}},
            {"choice": "TOOL_CHOICE_REQUIRED", "names": ["weather"]},
        ),
        (
            {
                "tool_choice": {"type": "allowed_tools", "allowed_tools": ALLOWED},
                "parallel_tool_calls": False,
            },
            {"choice": "TOOL_CHOICE_REQUIRED", "names": ["weather"], "single": True},
        ),
    ],
)
async def test_a_choice_becomes_a_guide(fields: dict[str, Any], guide: dict[str, Any]) -> None:
    start = await started(tools=TOOLS, **fields)
    calls = MessageToDict(start.guided, preserving_proto_field_name=True)
    assert calls == {"tool_calls": guide}
    assert len(start.chat.tools) == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": TOOLS, "tool_choice": "none"},
        {"tools": [{"type": "web_search"}], "tool_choice": "none"},
        {"tools": [], "tool_choice": "auto"},
        {"tool_choice": "none", "parallel_tool_calls": False},
        {"functions": [WEATHER["function"]], "function_call": "none"},
    ],
)
async def test_tools_that_may_not_be_called_are_not_told_of(fields: dict[str, Any]) -> None:
    async with stack(llm=ScriptedLLM(calls=CALLS)) as gateway:
        _, answer = await gateway.chat(**fields)
    (start,) = gateway.llm.starts
    assert not start.chat.tools
    assert not start.HasField("guided")
    assert answer["choices"][0]["message"]["content"] == "Hello"
    assert "tool_calls" not in answer["choices"][0]["message"]


async def test_a_form_and_a_continued_message_stand_beside_tools() -> None:
    start = await started(
        tools=TOOLS,
        guided_choice=["a.b", "c"],
        messages=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}],
        continue_final_message=True,
    )
    assert start.guided.regex == r"a\.b|c"
    assert start.guided.tool_calls.choice == llm_pb2.TOOL_CHOICE_AUTO
    assert start.chat.ending == llm_pb2.CHAT_ENDING_CONTINUED


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        (
            {"tool_choice": "required"},
            "tool_choice",
            "a call of a tool is demanded, but no tools are given",
        ),
        (
            {"tool_choice": named("f"), "tools": TOOLS},
            "tool_choice",
            "the tool 'f' is chosen, but it is not among the tools",
        ),
        (
            {"function_call": {"name": "f"}, "functions": [{"name": "g"}]},
            "function_call",
            "the tool 'f' is chosen, but it is not among the tools",
        ),
        (
            {"tools": [{"type": "code_interpreter"}]},
            "tools[0].type",
            "this server has no tools of the type 'code_interpreter'; describe it as a function,"
            " and run that yourself",
        ),
        (
            {"tools": [named("f") | {"function": {"name": "f", "parameters": "{}"}}]},
            "tools[0].function.parameters",
            "a JSON Schema is a string; it must be an object",
        ),
    ],
)
async def test_what_cannot_be_called_is_refused(
    fields: dict[str, Any], param: str, sentence: str
) -> None:
    assert await refusal(**fields) == (param, sentence)


@pytest.mark.parametrize(
    ("field", "param", "older"),
    [
        ("chat.tools", "tools", "functions"),
        ("chat.tools[1].name", "tools[1].function.name", "functions[1].name"),
        (
            "chat.tools[0].parameters.properties.city",
            "tools[0].function.parameters.properties.city",
            "functions[0].parameters.properties.city",
        ),
        ("guided.tool_calls", "tools", "functions"),
        ("guided.tool_calls.names[0]", "tools", "functions"),
    ],
)
async def test_an_error_names_the_clients_own_path(field: str, param: str, older: str) -> None:
    for fields, expected in (
        ({"tools": TOOLS}, param),
        ({"functions": [tool["function"] for tool in TOOLS]}, older),
    ):
        async with stack(
            llm=ScriptedLLM(failures=[InvalidArgumentError("a sentence", field=field)])
        ) as gateway:
            status, answer = await gateway.chat(**fields)
        assert (status, answer["error"]["param"]) == (400, expected)


async def test_a_whole_answer_holds_its_calls() -> None:
    async with stack(llm=silent(*CALLS)) as gateway, connect(gateway) as client:
        answers = [
            await client.chat.completions.create(
                model=MODEL, messages=[PICTURE], tools=TOOLS, n=2, logprobs=True
            )
            for _ in range(2)
        ]
    ids = set()
    for choice in (choice for answer in answers for choice in answer.choices):
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        calls: Any = choice.message.tool_calls
        assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
            ("weather", {"city": "Ulm"}),
            ("mcp.clock/v1:now", {}),
        ]
        ids |= {call.id for call in calls}
    assert len(ids) == 8  # no two calls share one, not even of two answers
    assert all(len(call_id) == len("call_") + 24 for call_id in ids)
    assert len(gateway.vision.requests) == 1


async def test_text_stands_beside_calls() -> None:
    async with stack(llm=ScriptedLLM(calls=CALLS)) as gateway:
        _, answer = await gateway.chat(tools=TOOLS)
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == "Hello"
    assert len(choice["message"]["tool_calls"]) == 2
    assert choice["finish_reason"] == "tool_calls"


async def test_a_call_that_was_cut_has_its_own_reason() -> None:
    llm = silent(("weather", PIECES[:1]), reason=llm_pb2.FINISH_REASON_LENGTH)
    async with stack(llm=llm) as gateway:
        _, answer = await gateway.chat(tools=TOOLS)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == PIECES[0]


async def test_answers_without_calls_stay_as_they_are() -> None:
    async with stack() as gateway:
        _, plain = await gateway.chat()
        _, answer = await gateway.chat(tools=TOOLS)
    for each in (plain, answer):
        assert each["choices"][0]["finish_reason"] == "stop"
        assert each["choices"][0]["message"].keys() == {"role", "content", "refusal"}


async def test_a_stream_holds_calls_piece_by_piece() -> None:
    llm = ScriptedLLM(texts=["Let me see."], calls=CALLS)
    async with stack(llm=llm) as gateway, connect(gateway) as client:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[PICTURE],
            tools=TOOLS,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    deltas = [choice.delta.to_dict() for chunk in chunks for choice in chunk.choices]
    assert deltas[:2] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "Let me see."},
    ]
    lists: list[Any] = [delta.get("tool_calls", []) for delta in deltas]
    pieces = [piece for each in lists for piece in each]
    ids = [piece.pop("id") for piece in pieces if "id" in piece]
    assert len(set(ids)) == 2
    assert pieces == [
        {"index": 0, "type": "function", "function": {"name": "weather", "arguments": '{"city"'}},
        {"index": 0, "function": {"arguments": ': "Ulm"'}},
        {"index": 0, "function": {"arguments": "}"}},
        {
            "index": 1,
            "type": "function",
            "function": {"name": "mcp.clock/v1:now", "arguments": "{}"},
        },
    ]
    assert chunks[-2].choices[0].finish_reason == "tool_calls"
    assert chunks[-1].usage


class weather(pydantic.BaseModel):  # noqa: N801  (a tool's name)
    """Of today."""

    city: str


# The client's own: its type of a parsed call does not foresee what it sends.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
async def test_the_clients_streaming_helper_reads_each_choices_calls() -> None:
    tool = openai.pydantic_function_tool(weather)
    async with (
        stack(llm=silent(("weather", PIECES))) as gateway,
        connect(gateway) as client,
        client.chat.completions.stream(
            model=MODEL, messages=[PICTURE], tools=[tool], n=2, logprobs=True
        ) as stream,
    ):
        events = [event async for event in stream]
        completion = await stream.get_final_completion()
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert [event.parsed_arguments for event in done] == [weather(city="Ulm")] * 2
    for choice in completion.choices:
        calls: Any = choice.message.tool_calls
        assert [call.function.parsed_arguments for call in calls] == [weather(city="Ulm")]


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
async def test_a_second_turn_brings_the_result_of_a_parsed_call() -> None:
    tool = openai.pydantic_function_tool(weather)
    async with stack(llm=silent(("weather", PIECES))) as gateway, connect(gateway) as client:
        first = await client.chat.completions.parse(model=MODEL, messages=[PICTURE], tools=[tool])
        message: Any = first.choices[0].message
        (call,) = message.tool_calls
        assert call.function.parsed_arguments == weather(city="Ulm")
        result: Any = {"role": "tool", "tool_call_id": call.id, "content": ""}
        await client.chat.completions.create(
            model=MODEL, messages=[PICTURE, message, result], tools=TOOLS
        )
    _, asking, answering = gateway.llm.starts[1].chat.messages
    assert not asking.parts
    (told,) = asking.tool_calls
    assert (told.name, told.arguments) == ("weather", "".join(PIECES))
    assert [part.text for part in answering.parts] == [""]


async def test_the_older_form() -> None:
    functions: Any = [WEATHER["function"]]
    async with stack(llm=silent(("weather", PIECES))) as gateway, connect(gateway) as client:
        whole = await client.chat.completions.create(
            model=MODEL,
            messages=[PICTURE],
            functions=functions,
            function_call={"name": "weather"},
        )
        stream = await client.chat.completions.create(
            model=MODEL, messages=[PICTURE], functions=functions, stream=True
        )
        deltas = [chunk.choices[0] async for chunk in stream]
    (choice,) = whole.choices
    assert choice.finish_reason == "function_call"
    assert choice.message.content is None
    assert choice.message.function_call
    assert choice.message.function_call.name == "weather"
    assert choice.message.function_call.arguments == "".join(PIECES)
    calls = [each.delta.function_call for each in deltas if each.delta.function_call]
    assert [(call.name, call.arguments) for call in calls] == [
        ("weather", PIECES[0]),
        (None, PIECES[1]),
        (None, PIECES[2]),
    ]
    assert deltas[-1].finish_reason == "function_call"
    guides = [start.guided.tool_calls for start in gateway.llm.starts]
    assert [guide.single for guide in guides] == [True, True]
    assert list(guides[0].names) == ["weather"]
