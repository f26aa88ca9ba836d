"""POST /v1/responses, as it goes over the wire, and with the openai client, unmodified."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pydantic
import pytest
from openai.types.responses import Response, ResponseStreamEvent

from gateway.services.routing import OFFER_COUNT
from protos.errors import EngineDeadError, InvalidArgumentError, OverloadedError
from protos.internvl.v1 import llm_pb2
from tests.fakes import MODEL, Gateway, ScriptedLLM, happening, stack

PICTURE = "data:image/png;base64,aGk="
QUESTION: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "input_text", "text": "What is this?"},
            {"type": "input_image", "image_url": PICTURE, "detail": "low"},
        ],
    }
]
TOOL: Any = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
CALLS = (("weather", ('{"city"', ': "Oslo"}')), ("weather", ('{"city": "Rome"}',)))
LOGPROBS: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(ResponseStreamEvent)
TEXT_EVENTS = [
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]


async def ask(gateway: Gateway, **body: Any) -> tuple[int, Any]:
    """Returns status and body of a response; without an input it is a greeting."""
    async with gateway.http.post("/v1/responses", json={"input": "Hi", **body}) as response:
        return response.status, await response.json()


async def events_of(gateway: Gateway, **body: Any) -> list[dict[str, Any]]:
    """Returns the events of a stream, each of which must be as OpenAI's types have it."""
    question = {"input": "Hi", "stream": True, **body}
    async with gateway.http.post("/v1/responses", json=question) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        blocks = (await response.text()).split("\n\n")
    assert blocks.pop() == ""
    return [event_in(block) for block in blocks if not block.startswith(":")]


def event_in(block: str) -> dict[str, Any]:
    name, data = block.split("\n")
    event: dict[str, Any] = json.loads(data.removeprefix("data: "))
    assert name == f"event: {event['type']}"
    assert EVENT.validate_python(event).type == event["type"]
    return event


def kinds(events: list[dict[str, Any]]) -> list[str]:
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return [event["type"] for event in events]


@asynccontextmanager
async def connected(llm: ScriptedLLM | None = None) -> AsyncIterator[tuple[Gateway, Any]]:
    async with (
        stack(llm=llm) as gateway,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield gateway, client


async def test_a_data_url_that_is_no_picture_is_text() -> None:
    schema = {"type": "object", "properties": {"icon": {"default": {"url": PICTURE}}}}
    output = [{"type": "input_image", "image_url": PICTURE}]
    call = {"type": "function_call", "call_id": "a", "name": "show", "arguments": {"url": PICTURE}}
    shown = [call, {"type": "function_call_output", "call_id": "a", "output": output}]
    async with stack() as gateway:
        tools = [{"type": "function", "name": "show", "parameters": schema}]
        status, answer = await ask(gateway, input=[*QUESTION, *shown], tools=tools)
        (start,) = gateway.llm.starts
    assert status == 200, answer
    assert answer["tools"][0]["parameters"] == schema
    assert json.loads(start.chat.tools[0].parameters) == schema
    assert json.loads(start.chat.messages[1].tool_calls[0].arguments) == {"url": PICTURE}
    assert len(start.images) == 2


async def test_a_whole_response() -> None:
    async with stack(llm=ScriptedLLM(calls=CALLS[:1])) as gateway:
        status, answer = await ask(gateway, input=QUESTION, tools=[TOOL], metadata={"a": "b"})
    assert status == 200
    Response.model_validate(answer)
    message, call = answer["output"]
    assert re.fullmatch(r"resp_\w{32}", answer["id"])
    assert re.fullmatch(r"msg_\w{24}", message.pop("id"))
    assert re.fullmatch(r"fc_\w{24}", call.pop("id"))
    assert re.fullmatch(r"call_\w{24}", call.pop("call_id"))
    assert message == {
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}],
    }
    assert call == {
        "type": "function_call",
        "status": "completed",
        "name": "weather",
        "arguments": '{"city": "Oslo"}',
    }
    assert answer["usage"] == {
        "input_tokens": 286,
        "input_tokens_details": {"cached_tokens": 16, "cache_write_tokens": 0, "image_tokens": 256},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 289,
    }
    assert (
        answer.items()
        >= {
            "object": "response",
            "status": "completed",
            "model": MODEL,
            "error": None,
            "incomplete_details": None,
            "metadata": {"a": "b"},
            "store": False,
            "previous_response_id": None,
            "tool_choice": "auto",
        }.items()
    )
    assert answer["completed_at"] >= answer["created_at"]


async def test_the_events_of_a_text() -> None:
    async with stack() as gateway:
        events = await events_of(gateway, instructions="Be brief.")
    begin = ["response.created", "response.in_progress"]
    assert kinds(events) == [*begin, *TEXT_EVENTS, "response.completed"]
    created, in_progress, *_, completed = events
    assert created["response"] == in_progress["response"]
    assert (
        created["response"].items()
        >= {
            "status": "in_progress",
            "completed_at": None,
            "output": [],
            "usage": None,
            "model": MODEL,
            "instructions": "Be brief.",
        }.items()
    )
    added, part_added, first, last, text_done, part_done, done = events[2:9]
    assert added["item"].items() >= {"status": "in_progress", "content": []}.items()
    assert part_added["part"]["text"] == ""
    assert first["delta"] + last["delta"] == text_done["text"] == part_done["part"]["text"]
    assert completed["response"]["output"] == [done["item"]]
    assert done["item"]["content"] == [part_done["part"]]
    places = [(event["item_id"], event["content_index"]) for event in events[3:8]]
    assert places == [(added["item"]["id"], 0)] * 5
    assert [event["output_index"] for event in events[2:9]] == [0] * 7
    assert completed["response"]["usage"]["output_tokens"] == 3


async def test_the_events_of_calls() -> None:
    async with stack(llm=ScriptedLLM(calls=CALLS)) as gateway:
        events = await events_of(gateway, tools=[TOOL])
    call_events = [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
    ]
    assert kinds(events)[2:] == [
        *TEXT_EVENTS,
        *call_events,
        *(call_events[:1] + call_events[2:]),
        "response.completed",
    ]
    added, first, last, done, item_done = events[9:14]
    assert added["item"].items() >= {"arguments": "", "status": "in_progress"}.items()
    assert first["delta"] + last["delta"] == done["arguments"] == '{"city": "Oslo"}'
    assert {event["item_id"] for event in (first, last, done)} == {added["item"]["id"]}
    assert [event["output_index"] for event in events[9:18]] == [1] * 5 + [2] * 4
    output = events[-1]["response"]["output"]
    assert output[1] == item_done["item"]
    assert len({item["id"] for item in output} | {call["call_id"] for call in output[1:]}) == 5


async def test_calls_without_a_text() -> None:
    async with stack(llm=ScriptedLLM(texts=[""], calls=CALLS)) as gateway:
        _, answer = await ask(gateway, tools=[TOOL], **LOGPROBS)
        events = await events_of(gateway, tools=[TOOL], **LOGPROBS)
    for output in (answer["output"], events[-1]["response"]["output"]):
        assert [item["type"] for item in output] == ["function_call", "function_call"]


async def test_log_probabilities() -> None:
    async with stack() as gateway:
        _, answer = await ask(gateway, **LOGPROBS)
        events = await events_of(gateway, **LOGPROBS)
    logprobs = answer["output"][0]["content"][0]["logprobs"]
    assert [token["token"] for token in logprobs] == ["Hel", "\\xf0\\x9f", "lo"]
    assert logprobs[0] == {
        "token": "Hel",
        "bytes": [72, 101, 108],
        "logprob": -0.5,
        "top_logprobs": [{"token": "Hel", "bytes": [72, 101, 108], "logprob": -0.5}],
    }
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [event["delta"] for event in deltas] == ["Hel", "", "lo"]
    assert sum((event["logprobs"] for event in deltas), []) == logprobs
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == logprobs


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_was_cut(stream: bool) -> None:
    llm = ScriptedLLM(reason=llm_pb2.FINISH_REASON_LENGTH, calls=CALLS[:1])
    async with stack(llm=llm) as gateway:
        if stream:
            last = (await events_of(gateway, tools=[TOOL], max_output_tokens=3))[-1]
            assert last["type"] == "response.incomplete"
            answer = last["response"]
        else:
            _, answer = await ask(gateway, tools=[TOOL], max_output_tokens=3)
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert answer["completed_at"] is None
    assert [item["status"] for item in answer["output"]] == ["completed", "incomplete"]
    assert answer["usage"]["output_tokens"] == 3
    assert gateway.llm.starts[0].stop.max_token_count == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_an_empty_answer_has_an_empty_message(stream: bool) -> None:
    async with stack(llm=ScriptedLLM(texts=[""])) as gateway:
        if stream:
            answer = (await events_of(gateway))[-1]["response"]
        else:
            _, answer = await ask(gateway)
    assert [part["text"] for item in answer["output"] for part in item["content"]] == [""]


async def test_a_stream_that_fails() -> None:
    llm = ScriptedLLM(late_failure=EngineDeadError("x"))
    async with stack(llm=llm) as gateway:
        events = await events_of(gateway)
    assert kinds(events)[-3:] == ["response.output_text.delta", "error", "response.failed"]
    error, failed = events[-2:]
    detail = error["error"]
    assert set(detail) == {"message", "type", "param", "code"}
    assert detail.items() >= {name: error[name] for name in ("message", "param", "code")}.items()
    response = failed["response"]
    assert response["status"] == "failed"
    assert response["error"] == {"code": "server_error", "message": error["message"]}
    assert [item["status"] for item in response["output"]] == ["incomplete"]
    assert response["output"][0]["content"][0]["text"] == "Hello"


async def test_a_stream_that_fails_after_a_keep_alive() -> None:
    llm = ScriptedLLM(failure_after_wanted=OverloadedError("full"))
    async with stack(llm=llm, sse_keep_alive_seconds=0.05) as gateway:
        question = {"input": "Hi", "stream": True}
        async with gateway.http.post("/v1/responses", json=question) as response:
            assert await response.content.readline() == b": keep-alive\n"
            llm.failure_signal.set()
            blocks = (await response.text()).strip().split("\n\n")
    events = [event_in(block) for block in blocks if not block.startswith(":")]
    assert kinds(events) == ["response.created", "response.in_progress", "error", "response.failed"]
    assert events[-1]["response"]["error"]["code"] == "rate_limit_exceeded"


async def test_the_timing_comes_before_the_last_event() -> None:
    async with (
        stack() as gateway,
        gateway.http.post(
            "/v1/responses",
            json={"input": "Hi", "stream": True},
            headers={"x-internvl-server-timing": "1"},
        ) as response,
    ):
        *_, timing, last, end = (await response.text()).split("\n\n")
    assert timing.startswith(": server-timing: body;dur=")
    assert last.startswith("event: response.completed\n")
    assert end == ""


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ("chat.messages[1].parts[0].text", "input[0].content"),
        ("chat.tools[0].parameters.properties.city", "tools[0].parameters.properties.city"),
        ("sampling.temperature", "temperature"),
    ],
)
async def test_an_error_of_the_service_names_the_clients_field(field: str, param: str) -> None:
    llm = ScriptedLLM(failures=[InvalidArgumentError("wrong", field=field)])
    async with stack(llm=llm) as gateway:
        status, answer = await ask(
            gateway,
            instructions="Be brief.",
            input=[{"role": "user", "content": "Hi"}],
            tools=[TOOL],
            temperature=2.5,
        )
    assert status == 400
    assert answer["error"] == {
        "message": "wrong",
        "type": "invalid_request_error",
        "param": param,
        "code": "invalid_value",
    }


async def test_a_picture_that_cannot_be_had() -> None:
    question = [{"role": "user", "content": [{"type": "input_image", "image_url": "data:x"}]}]
    async with stack() as gateway:
        status, answer = await ask(gateway, input=question)
    assert status == 400
    assert answer["error"]["param"] == "input[0].content[0].image_url"


async def test_too_many_pictures() -> None:
    part = {"type": "input_image", "image_url": "https://example.com/a.png"}
    async with stack(max_image_count=1) as gateway:
        status, answer = await ask(gateway, input=[{"role": "user", "content": [part, part]}])
    assert (status, answer["error"]["param"]) == (400, "input")


async def test_nothing_is_stored() -> None:
    async with connected() as (gateway, client):
        answer = await client.responses.create(model=MODEL, input="Hi")
        with pytest.raises(openai.NotFoundError, match="no response is stored"):
            await client.responses.retrieve(answer.id)
        with pytest.raises(openai.NotFoundError, match="no response is stored"):
            await client.responses.delete(answer.id)
        with pytest.raises(openai.NotFoundError, match="no response is stored"):
            await client.responses.input_items.list(answer.id)
        with pytest.raises(openai.BadRequestError, match="nothing is stored here") as caught:
            await client.responses.create(model=MODEL, input="Hi", previous_response_id=answer.id)
        assert caught.value.param == "previous_response_id"
    assert len(gateway.llm.starts) == 1


async def test_the_client_loops_over_tools() -> None:
    async with connected(ScriptedLLM(calls=CALLS)) as (gateway, client):
        items = [*QUESTION]
        first = await client.responses.create(model=MODEL, input=items, tools=[TOOL])
        items += [item.model_dump(exclude_none=True) for item in first.output]
        calls = [item for item in first.output if item.type == "function_call"]
        items += [
            {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
            for call in calls
        ]
        gateway.llm.calls = ()
        second = await client.responses.create(model=MODEL, input=items, tools=[TOOL])
    assert second.output_text == "Hello"
    user, assistant, *results = gateway.llm.starts[1].chat.messages
    assert [part.WhichOneof("part") for part in user.parts] == ["text", "image"]
    assert assistant.parts[0].text == "Hello"
    arguments = [call.arguments for call in assistant.tool_calls]
    assert arguments == ['{"city": "Oslo"}', '{"city": "Rome"}']
    assert [result.role for result in results] == [llm_pb2.ROLE_TOOL] * 2
    assert len(gateway.vision.requests) == 1


class Size(pydantic.BaseModel):
    """What a parsed answer is."""

    size: int


async def test_the_client_parses_an_answer() -> None:
    async with connected(ScriptedLLM(texts=['{"size"', ": 3}"])) as (gateway, client):
        answer = await client.responses.parse(model=MODEL, input=QUESTION, text_format=Size)
        async with client.responses.stream(model=MODEL, input="Hi", text_format=Size) as stream:
            parsed = [
                event.parsed async for event in stream if event.type == "response.output_text.done"
            ]
            final = await stream.get_final_response()
    assert answer.output_parsed == final.output_parsed == Size(size=3)
    assert parsed == [Size(size=3)]
    schema = json.loads(gateway.llm.starts[0].guided.json_schema)
    assert schema["required"] == ["size"]
    assert schema["additionalProperties"] is False


async def test_the_client_streams_calls() -> None:
    async with (
        connected(ScriptedLLM(calls=CALLS)) as (_, client),
        client.responses.stream(model=MODEL, input=QUESTION, tools=[TOOL], **LOGPROBS) as stream,
    ):
        snapshots = [
            event.snapshot
            async for event in stream
            if event.type == "response.function_call_arguments.delta"
        ]
        final = await stream.get_final_response()
    assert snapshots == ['{"city"', '{"city": "Oslo"}', '{"city": "Rome"}']
    assert final.output_text == "Hello"
    assert [item.parsed_arguments for item in final.output[1:]] == [
        {"city": "Oslo"},
        {"city": "Rome"},
    ]


async def test_the_client_raises_what_fails() -> None:
    async with connected() as (gateway, client):
        gateway.llm.failures = [OverloadedError("full")] * OFFER_COUNT
        with pytest.raises(openai.RateLimitError, match="full"):
            await client.responses.create(model=MODEL, input="Hi")
        with pytest.raises(openai.NotFoundError):
            await client.responses.create(model="other", input="Hi")
        gateway.llm.late_failure = EngineDeadError("x")
        stream = await client.responses.create(model=MODEL, input="Hi", stream=True)
        for _ in range(6):
            await anext(stream)
        with pytest.raises(openai.APIError, match="engine"):
            await anext(stream)


async def test_leaving_a_stream_ends_the_generation() -> None:
    async with connected(ScriptedLLM(stalls=True)) as (gateway, client):
        stream = await client.responses.create(model=MODEL, input="Hi", stream=True)
        await anext(stream)
        await stream.close()
        await happening(gateway.llm.cancelled)
