"""The stand-in for a good model, which clients' tests run against: it must be right itself."""

from __future__ import annotations

import json

import pytest

from protos.internvl.v1 import llm_pb2
from tests.clients.examples import Examples
from tests.clients.perfect import PerfectLLM

WEATHER = llm_pb2.ToolDefinition(
    name="get_weather",
    parameters='{"type": "object", "properties": {"city": {"type": "string"}}}',
)
AUTO = llm_pb2.ToolCallGuide(choice=llm_pb2.TOOL_CHOICE_AUTO)
REQUIRED = llm_pb2.ToolCallGuide(choice=llm_pb2.TOOL_CHOICE_REQUIRED)


@pytest.mark.parametrize(
    ("schema", "question", "value"),
    [
        ({"type": "integer"}, "What is f(3)?", 3),
        ({"type": "string"}, "Is it sunny in San Francisco?", "San Francisco"),
        ({"type": "string"}, "A firm named '你好' in Paris", "你好"),
        ({"enum": ["cat", "dog"]}, "", "cat"),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, "", None),
        ({"type": "array", "items": {"type": "boolean"}}, "", [True]),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"const": 7}}}, "", 7),
        ({"properties": {"a": {"type": "number"}}, "type": "object"}, "2", {"a": 2}),
    ],
)
def test_examples_fit_their_schemas(schema: object, question: str, value: object) -> None:
    assert json.loads(Examples(question).of_schema(json.dumps(schema))) == value


async def said(
    guide: llm_pb2.ToolCallGuide, *turns: tuple[llm_pb2.Role.ValueType, str]
) -> tuple[str, str]:
    """Returns the text, and the arguments of the call."""
    messages = [
        llm_pb2.ChatMessage(role=role, parts=[llm_pb2.ContentPart(text=text)])
        for role, text in turns
    ]
    start = llm_pb2.GenerateStart(
        chat=llm_pb2.ChatPrompt(messages=messages, tools=[WEATHER]),
        guided=llm_pb2.GuidedDecoding(tool_calls=guide),
    )
    deltas = [response.delta async for response in PerfectLLM()._answer(start)]
    calls = [call.arguments for delta in deltas for call in delta.tool_calls]
    return "".join(delta.text for delta in deltas), "".join(calls)


async def test_tools_are_called_when_they_are_asked_for() -> None:
    question = (llm_pb2.ROLE_USER, "What is the weather in Paris?")
    assert await said(AUTO, question) == ("", '{"city": "Paris"}')
    assert await said(AUTO, (llm_pb2.ROLE_USER, "Hello")) == ("Hello! How can I help?", "")
    assert (await said(REQUIRED, (llm_pb2.ROLE_USER, "Hello")))[1]
    told = await said(AUTO, question, (llm_pb2.ROLE_TOOL, "Sunny"))
    assert told == ("I was told: Sunny", "")
