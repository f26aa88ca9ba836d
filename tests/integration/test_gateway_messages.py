"""The anthropic client, unmodified, against the gateway: messages, streams, tools and counts."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
from typing import Any

import anthropic
import pydantic
import pytest
from anthropic.types import MessageParam
from google.protobuf.json_format import MessageToDict

from gateway.services.routing import OFFER_COUNT
from protos.errors import (
    EngineDeadError,
    InvalidArgumentError,
    InvalidImageError,
    OverloadedError,
    ServiceError,
)
from protos.internvl.v1 import llm_pb2
from protos.process.settings import MIB
from tests.fakes import MODEL, Gateway, ScriptedLLM, ScriptedVision, happening, stack

PATH = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
IMAGE: Any = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": "aGk="},
}
QUESTION: MessageParam = {
    "role": "user",
    "content": [{"type": "text", "text": "What is this?"}, IMAGE],
}
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS: list[Any] = [
    {"name": "weather", "description": "Of today.", "input_schema": SCHEMA},
    {"name": "clock", "input_schema": {"type": "object"}},
]
CALLS = [("weather", ['{"city"', ': "Ulm"', "}"]), ("clock", ["{}"])]
pytestmark = pytest.mark.timeout(60)


def connect(gateway: Gateway) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=gateway.url, api_key="none", max_retries=0)


def asked(**fields: Any) -> dict[str, Any]:
    """Returns the smallest request, with fields added."""
    return {"model": MODEL, "max_tokens": 9, "messages": [QUESTION], **fields}


def image_of(content: bytes, *order: str) -> dict[str, Any]:
    data = base64.b64encode(content).decode()
    source = {"type": "base64", "media_type": "image/png", "data": data}
    return {"type": "image", "source": {name: source[name] for name in order or source}}


async def post(
    gateway: Gateway, body: Any, path: str = PATH, **headers: str
) -> tuple[int, Any, Any]:
    """Returns status, JSON body and headers of an answer."""
    data = io.BytesIO(json.dumps(body).encode())
    async with gateway.http.post(path, data=data, headers=headers) as response:
        return response.status, await response.json(), response.headers


async def test_a_message_and_a_second_turn() -> None:
    async with stack() as gateway, connect(gateway) as client:
        first = await client.messages.create(
            **asked(system="Be brief."), extra_body={"temperature": 0}
        )
        more: MessageParam = {"role": "user", "content": "Sure?"}
        second = await client.messages.create(**asked(messages=[QUESTION, first.to_param(), more]))
    (block,) = first.content
    assert block.type == "text"
    assert block.text == "Hello"
    assert (first.stop_reason, first.stop_sequence, first.model) == ("end_turn", None, MODEL)
    assert first._request_id
    assert first.id == f"msg_{first._request_id}"
    usage = first.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (270, 16, 3)
    assert second.stop_reason == "end_turn"
    assert len(gateway.vision.requests) == 1  # the second turn finds the picture
    assert gateway.vision.requests[0].image == b"hi"
    turns = MessageToDict(gateway.llm.starts[1].chat)["messages"]
    assert turns == [
        {"role": "ROLE_USER", "parts": [{"text": "What is this?"}, {"image": {}}]},
        {"role": "ROLE_ASSISTANT", "parts": [{"text": "Hello"}]},
        {"role": "ROLE_USER", "parts": [{"text": "Sure?"}]},
    ]


async def test_a_stream_of_raw_events() -> None:
    async with stack() as gateway, connect(gateway) as client:
        stream = await client.messages.create(**asked(stream=True))
        events = [event async for event in stream]
    assert [event.type for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    first, last = events[0], events[-2]
    assert first.type == "message_start"
    assert first.message.usage.input_tokens == 286
    assert last.type == "message_delta"
    assert (last.usage.input_tokens, last.usage.cache_read_input_tokens) == (270, 16)


@pytest.mark.parametrize("keep_alive", [0.0, 0.02])
async def test_the_helper_of_streams_takes_every_event(keep_alive: float) -> None:
    """Also comments between the events, of a stream in which nothing comes for long."""
    llm = ScriptedLLM(calls=CALLS, stalls=bool(keep_alive))
    async with (
        stack(llm=llm, sse_keep_alive_seconds=keep_alive) as gateway,
        connect(gateway) as client,
    ):
        kinds = []
        async with client.messages.stream(**asked(tools=TOOLS)) as stream:
            async for event in stream:
                kinds.append(event.type)
                if keep_alive and not llm.released.is_set():
                    await silence(gateway, llm)
            message = await stream.get_final_message()
        whole = await client.messages.create(**asked(tools=TOOLS))
    assert kinds.count("text") == 2
    assert kinds.count("input_json") == 4
    assert [block.type for block in message.content] == ["text", "tool_use", "tool_use"]
    assert content_of(message) == content_of(whole)
    assert message.usage == whole.usage
    assert message.stop_reason == "tool_use"


async def silence(gateway: Gateway, llm: ScriptedLLM) -> None:
    """Lets the answers go on once another one, as silent, has got a comment."""
    await happening(llm.stalled)
    async with gateway.http.post(PATH, json=asked(stream=True)) as response:
        while await response.content.readline() != b": keep-alive\n":
            assert not response.content.at_eof()
    llm.released.set()


def content_of(message: Any) -> list[Any]:
    """Returns a message's blocks without the ids of calls, which are all different."""
    blocks = [block.to_dict() for block in message.content]
    ids = [block.pop("id") for block in blocks if "id" in block]
    assert len(set(ids)) == len(ids)
    return [{name: block[name] for name in block if name != "parsed_output"} for block in blocks]


async def test_the_text_of_a_stream() -> None:
    async with (
        stack() as gateway,
        connect(gateway) as client,
        client.messages.stream(**asked()) as stream,
    ):
        assert [text async for text in stream.text_stream] == ["Hel", "lo"]
        assert await stream.get_final_text() == "Hello"


def test_the_sync_client() -> None:
    def ask(url: str) -> tuple[str, str]:
        with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
            whole = client.messages.create(**asked())
            with client.messages.stream(**asked()) as stream:
                text = "".join(stream.text_stream)
            assert whole.content[0].type == "text"
            return whole.content[0].text, text

    async def run() -> tuple[str, str]:
        async with stack() as gateway:
            return await asyncio.to_thread(ask, gateway.url)

    assert asyncio.run(run()) == ("Hello", "Hello")


async def test_tools_are_called_and_their_results_are_shown() -> None:
    llm = ScriptedLLM(texts=[], calls=CALLS)
    async with stack(llm=llm) as gateway, connect(gateway) as client:
        first = await client.messages.create(
            **asked(tools=TOOLS, tool_choice={"type": "any", "disable_parallel_tool_use": True})
        )
        weather, clock = (block for block in first.content if block.type == "tool_use")
        results: list[Any] = [
            {"type": "tool_result", "tool_use_id": weather.id, "content": [IMAGE]},
            {"type": "tool_result", "tool_use_id": clock.id, "content": "?", "is_error": True},
        ]
        history = [QUESTION, first.to_param(), {"role": "user", "content": results}]
        await client.messages.create(**asked(messages=history, tools=TOOLS))
    assert first.stop_reason == "tool_use"
    assert weather.input == {"city": "Ulm"}
    assert (clock.name, clock.input) == ("clock", {})
    start = llm.starts[0]
    assert [tool.name for tool in start.chat.tools] == ["weather", "clock"]
    assert json.loads(start.chat.tools[0].parameters) == SCHEMA
    assert start.guided.tool_calls.choice == llm_pb2.TOOL_CHOICE_REQUIRED
    assert start.guided.tool_calls.single
    assert MessageToDict(llm.starts[1].chat)["messages"][1:] == [
        {
            "role": "ROLE_ASSISTANT",
            "toolCalls": [
                {"name": "weather", "arguments": '{"city": "Ulm"}'},
                {"name": "clock", "arguments": "{}"},
            ],
        },
        {"role": "ROLE_TOOL"},
        {"role": "ROLE_TOOL", "parts": [{"text": "Error:"}, {"text": "?"}]},
        {"role": "ROLE_USER", "parts": [{"image": {}}]},
    ]
    assert len(llm.starts[1].images) == 2


async def test_the_runner_of_tools_ends_with_an_answer() -> None:
    asked_for: list[str] = []

    @anthropic.beta_async_tool
    async def weather(city: str) -> str:
        """Of today.

        Args:
            city: where.
        """
        asked_for.append(city)
        return "rain"

    class OnceCalling(ScriptedLLM):
        """Calls its tool in the first turn alone."""

        def _call_deltas(self, choices: range) -> Any:
            return super()._call_deltas(choices) if len(self.starts) == 1 else iter(())

    llm = OnceCalling(calls=CALLS[:1])
    async with stack(llm=llm) as gateway, connect(gateway) as client:
        runner = client.beta.messages.tool_runner(**asked(tools=[weather]))
        last = await runner.until_done()
    assert asked_for == ["Ulm"]
    assert last.stop_reason == "end_turn"
    assert MessageToDict(llm.starts[1].chat)["messages"][-1] == {
        "role": "ROLE_TOOL",
        "parts": [{"text": "rain"}],
    }


class Size(pydantic.BaseModel):
    """What a parsed answer is."""

    size: int


async def test_a_parsed_answer() -> None:
    llm = ScriptedLLM(texts=['{"size"', ": 3}"])
    async with stack(llm=llm) as gateway, connect(gateway) as client:
        message = await client.messages.parse(**asked(output_format=Size))
        async with client.messages.stream(**asked(output_format=Size)) as stream:
            streamed = await stream.get_final_message()
    assert message.parsed_output == streamed.parsed_output == Size(size=3)
    schema = json.loads(llm.starts[0].guided.json_schema)
    assert schema["required"] == ["size"]
    assert schema["additionalProperties"] is False


async def test_a_stop_sequence_is_told() -> None:
    llm = ScriptedLLM(stop_string="END")
    async with stack(llm=llm) as gateway, connect(gateway) as client:
        message = await client.messages.create(**asked(stop_sequences=["END"]))
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "END")
    assert list(llm.starts[0].stop.strings) == ["END"]


async def test_an_answer_that_was_begun_goes_on() -> None:
    begun: MessageParam = {"role": "assistant", "content": "It is"}
    llm = ScriptedLLM(reason=llm_pb2.FINISH_REASON_LENGTH)
    async with stack(llm=llm) as gateway, connect(gateway) as client:
        message = await client.messages.create(**asked(messages=[QUESTION, begun]))
    chat = llm.starts[0].chat
    assert chat.messages[-1].role == llm_pb2.ROLE_ASSISTANT
    assert chat.ending == llm_pb2.CHAT_ENDING_UNSPECIFIED  # which is to go on
    assert message.stop_reason == "max_tokens"


async def test_tokens_are_counted_and_no_picture_is_encoded() -> None:
    async with stack() as gateway, connect(gateway) as client:
        alone = await client.messages.count_tokens(model=MODEL, messages=[QUESTION], tools=TOOLS)
        plain = await client.messages.count_tokens(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}]
        )
        used = await client.messages.create(**asked())
    (with_picture, without), llm = gateway.llm.counts, gateway.llm
    assert alone.input_tokens == 30 + sum(with_picture.image_row_counts) > 30
    assert plain.input_tokens == 30
    assert [tool.name for tool in with_picture.chat.tools] == ["weather", "clock"]
    assert not without.chat.tools
    assert len(gateway.vision.requests) == len(llm.starts) == 1  # the message's own
    assert used.usage.input_tokens


@pytest.mark.parametrize(
    "order", [("type", "media_type", "data"), ("data", "media_type", "type"), ("data", "type")]
)
async def test_a_large_image_is_no_text_and_what_looks_like_one_is(order: Any) -> None:
    image = random.Random(0).randbytes(16 * MIB)
    lookalike = {"type": "image", "source": {"type": "base64", "data": "aGk=", "url": "data:,"}}
    messages = [
        {"role": "user", "content": [image_of(image, *order)]},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "a", "name": "show", "input": lookalike}],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a"}]},
    ]
    async with stack(max_text_byte_count=1000) as gateway:
        status, answer, _ = await post(gateway, asked(messages=messages))
    assert status == 200, answer
    assert gateway.vision.requests[0].image == image
    (call,) = gateway.llm.starts[0].chat.messages[1].tool_calls
    assert json.loads(call.arguments) == lookalike


async def test_an_image_by_its_url() -> None:
    source = {"type": "url", "url": "data:image/png;base64,aGk="}
    messages = [{"role": "user", "content": [{"type": "image", "source": source}]}]
    async with stack() as gateway:
        status, answer, _ = await post(gateway, asked(messages=messages))
    assert status == 200, answer
    assert gateway.vision.requests[0].image == b"hi"


def error_of(answer: Any, headers: Any) -> tuple[str, str]:
    """Returns kind and sentence of an error in Anthropic's form."""
    assert answer["type"] == "error"
    assert answer["request_id"] == headers["request-id"] == headers["x-request-id"]
    return answer["error"]["type"], answer["error"]["message"]


@pytest.mark.parametrize(
    ("failure", "status", "kind", "message"),
    [
        (
            InvalidArgumentError("x", field="sampling.top_p"),
            400,
            "invalid_request_error",
            "top_p: x",
        ),
        (
            InvalidArgumentError("x", field="chat.messages[0].parts[0].text"),
            400,
            "invalid_request_error",
            "messages.0.content.0.text: x",
        ),
        (OverloadedError("x", retry_after=2.5), 429, "rate_limit_error", "x"),
        (ServiceError("x"), 500, "api_error", "x"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_of_a_service_has_anthropics_form(
    failure: ServiceError, status: int, kind: str, message: str, stream: bool
) -> None:
    llm = ScriptedLLM(failures=[failure] * OFFER_COUNT)
    async with stack(llm=llm) as gateway:
        body = asked(stream=stream, top_p=0.5)
        found, answer, headers = await post(gateway, body, **{"x-request-id": "mine"})
    assert found == status
    assert error_of(answer, headers) == (kind, message)
    assert headers["request-id"] == "mine"
    assert headers.get("Retry-After") == ("3" if status == 429 else None)


async def test_an_error_of_an_image_names_it() -> None:
    vision = ScriptedVision(failures=[InvalidImageError("no picture", field="image")])
    results = [{"type": "tool_result", "tool_use_id": "a", "content": [IMAGE]}]
    bad = asked(messages=[{"role": "user", "content": [image_of(b"").copy()]}])
    bad["messages"][0]["content"][0]["source"]["data"] = "a*b="
    async with stack(vision=vision) as gateway:
        body = asked(messages=[{"role": "user", "content": results}])
        _, answer, headers = await post(gateway, body)
        assert (
            error_of(answer, headers)[1] == "messages.0.content.0.content.0.source.data: no picture"
        )
        _, answer, headers = await post(gateway, bad)
        assert error_of(answer, headers)[1] == (
            "messages.0.content.0.source.data: the image's base64 may not hold '*'"
            " (at its character 2)"
        )


@pytest.mark.parametrize("path", [PATH, COUNT])
async def test_what_is_refused_before_it_is_read_has_anthropics_form(path: str) -> None:
    async with stack(max_body_byte_count=1000) as gateway:
        status, answer, headers = await post(gateway, {"model": "x" * 1000}, path)
        assert (status, error_of(answer, headers)[0]) == (413, "request_too_large")
        status, answer, headers = await post(
            gateway, asked(), path, **{"Sec-Fetch-Site": "cross-site"}
        )
        assert (status, error_of(answer, headers)[0]) == (403, "permission_error")
        async with gateway.http.get(path) as response:
            kind, sentence = error_of(await response.json(), response.headers)
        assert (response.status, kind) == (405, "invalid_request_error")
        assert response.headers["Allow"] == "POST"
        assert sentence == f"{path} does not take GET; it takes POST"
        async with gateway.http.post(path, data=b"{") as response:
            kind, sentence = error_of(await response.json(), response.headers)
        assert (response.status, kind) == (400, "invalid_request_error")
        assert "not valid JSON" in sentence
        _, answer, headers = await post(gateway, asked(model="other"), path)
        assert error_of(answer, headers)[0] == "not_found_error"
        async with gateway.http.post("/v1/chat/completions", data=b"{") as response:
            assert "request-id" not in response.headers
            assert (await response.json())["error"]["code"] == "invalid_value"


async def test_errors_are_the_clients_own() -> None:
    async with stack() as gateway, connect(gateway) as client:
        with pytest.raises(anthropic.BadRequestError, match="top_k: top-k is a string"):
            await client.messages.create(**asked(), extra_body={"top_k": "a"})
        with pytest.raises(anthropic.NotFoundError) as caught:
            await client.messages.create(**asked(model="claude"))
        assert caught.value.request_id
        assert caught.value.type == "not_found_error"
        gateway.llm.failures = [OverloadedError("full")] * OFFER_COUNT
        with pytest.raises(anthropic.RateLimitError, match="full"):
            await client.messages.create(**asked())
        gateway.llm.failures = [EngineDeadError("x")] * 3
        with pytest.raises(anthropic.InternalServerError, match="engine"):
            await client.messages.create(**asked(stream=True))


async def test_an_error_in_the_stream_is_raised() -> None:
    llm = ScriptedLLM(late_failure=EngineDeadError("x"))
    async with stack(llm=llm) as gateway, connect(gateway) as client:
        stream = await client.messages.create(**asked(stream=True))
        kinds = [(await anext(stream)).type for _ in range(4)]
        with pytest.raises(anthropic.APIStatusError, match="engine"):
            await anext(stream)
    assert kinds == ["message_start", "content_block_start", *["content_block_delta"] * 2]


async def test_leaving_a_stream_ends_the_generation() -> None:
    async with stack(llm=ScriptedLLM(stalls=True)) as gateway, connect(gateway) as client:
        stream = await client.messages.create(**asked(stream=True))
        await anext(stream)
        await stream.close()
        await happening(gateway.llm.cancelled)


async def test_ignored_fields_are_named() -> None:
    async with stack() as gateway:
        for path in (PATH, COUNT):
            _, _, headers = await post(gateway, asked(something_new=1), path)
            assert headers["x-internvl-ignored"] == "something_new"
    async with stack(strict_fields=True) as gateway:
        for path in (PATH, COUNT):
            status, answer, headers = await post(gateway, asked(something_new=1), path)
            assert status == 400
            assert error_of(answer, headers)[1].startswith("something_new: ")


async def test_the_models_of_the_server() -> None:
    async with stack() as gateway, connect(gateway) as client:
        assert [model.id async for model in client.models.list()] == [MODEL]
        assert (await client.models.retrieve(MODEL)).id == MODEL
