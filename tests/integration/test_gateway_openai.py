"""The openai client, unmodified, against the gateway: sync, async and streaming."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pydantic
import pytest
from openai.types.chat import ChatCompletionMessageParam

from gateway.services.routing import OFFER_COUNT
from protos.errors import EngineDeadError, OverloadedError
from tests.fakes import MODEL, Gateway, ScriptedLLM, happening, stack

QUESTION: list[ChatCompletionMessageParam] = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is this?"},
            {
                "type": "image_url",
                "image_url": {"url": "data:image/png;base64,aGk=", "detail": "low"},
            },
        ],
    }
]


def connect(gateway: Gateway) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)


async def test_a_completion_and_a_second_turn() -> None:
    async with stack() as gateway, connect(gateway) as client:
        first = await client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
        answer: Any = first.choices[0].message.model_dump()
        more: ChatCompletionMessageParam = {"role": "user", "content": "Sure?"}
        second = await client.chat.completions.create(
            model=MODEL, messages=[*QUESTION, answer, more], extra_body={"top_k": 1}
        )
    assert first.choices[0].message.content == "Hello"
    assert second.choices[0].finish_reason == "stop"
    assert first.usage
    assert first.usage.prompt_tokens_details
    assert first.usage.prompt_tokens_details.cached_tokens == 16
    assert len(gateway.vision.requests) == 1
    assert gateway.llm.starts[1].sampling.top_k == 1


async def test_a_stream() -> None:
    async with stack() as gateway, connect(gateway) as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(texts) == "Hello"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage
    assert chunks[-1].usage.total_tokens == 286 + 3


@pytest.mark.parametrize("include", [True, False])
async def test_a_stream_with_the_usage_in_each_chunk(include: bool) -> None:
    options: Any = {"include_usage": include, "continuous_usage_stats": True}
    async with stack() as gateway, connect(gateway) as client:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=QUESTION,
            stream=True,
            stream_options=options,
        )
        usages = [chunk.usage async for chunk in stream]
    if not include:  # as vLLM has it
        assert not any(usages)
        return
    assert [usage and usage.completion_tokens for usage in usages] == [0, 1, 3, 3, 3]
    assert [usage and usage.prompt_tokens for usage in usages] == [286] * 5


class Size(pydantic.BaseModel):
    """What a parsed answer is."""

    size: int


# The client's own: it sends `parsed` back, which its type does not foresee.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
async def test_a_parsed_answer_and_a_second_turn() -> None:
    llm = ScriptedLLM(texts=['{"size"', ": 3}"])
    async with stack(llm=llm) as gateway, connect(gateway) as client:
        first = await client.chat.completions.parse(
            model=MODEL, messages=QUESTION, response_format=Size, n=2, logprobs=True
        )
        messages: list[Any] = [*QUESTION, first.choices[0].message, *QUESTION]
        await client.chat.completions.parse(model=MODEL, messages=messages, response_format=Size)
    assert [choice.message.parsed for choice in first.choices] == [Size(size=3)] * 2
    assert first.choices[1].logprobs
    assert first.choices[1].logprobs.content
    assert first.choices[1].logprobs.content[0].token == '{"size"'
    assert json.loads(llm.starts[0].guided.json_schema)["required"] == ["size"]
    assert llm.starts[1].chat.messages[1].parts[0].text == '{"size": 3}'


async def test_a_stream_of_parsed_choices() -> None:
    llm = ScriptedLLM(texts=['{"size"', ": 3}"])
    async with (
        stack(llm=llm) as gateway,
        connect(gateway) as client,
        client.chat.completions.stream(
            model=MODEL, messages=QUESTION, response_format=Size, n=2, logprobs=True
        ) as stream,
    ):
        completion = await stream.get_final_completion()
    assert [choice.message.parsed for choice in completion.choices] == [Size(size=3)] * 2


async def test_the_sync_client() -> None:
    def ask(url: str) -> tuple[str | None, str]:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            whole = client.chat.completions.create(model=MODEL, messages=QUESTION)
            stream = client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            return whole.choices[0].message.content, text

    async with stack() as gateway:
        assert await asyncio.to_thread(ask, gateway.url) == ("Hello", "Hello")


async def test_models() -> None:
    async with stack() as gateway, connect(gateway) as client:
        assert [model.id async for model in client.models.list()] == [MODEL]
        assert (await client.models.retrieve(MODEL)).id == MODEL
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("other")


async def test_errors_are_the_clients_own() -> None:
    async with stack() as gateway, connect(gateway) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(
                model=MODEL, messages=QUESTION, modalities=["audio"]
            )
        assert (caught.value.param, caught.value.code) == ("modalities", "unsupported_field")
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="other", messages=QUESTION)
        gateway.llm.failures = [OverloadedError("full")] * OFFER_COUNT
        with pytest.raises(openai.RateLimitError, match="full"):
            await client.chat.completions.create(model=MODEL, messages=QUESTION)
        gateway.llm.failures = [EngineDeadError("x")] * 3
        with pytest.raises(openai.InternalServerError, match="engine"):
            await client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)


async def test_an_error_in_the_stream_is_raised() -> None:
    llm = ScriptedLLM(late_failure=EngineDeadError("x"))
    async with stack(llm=llm) as gateway, connect(gateway) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
        for expected in ("", "Hel", "lo"):
            assert (await anext(stream)).choices[0].delta.content == expected
        with pytest.raises(openai.APIError, match="engine"):
            await anext(stream)


async def test_leaving_a_stream_ends_the_generation() -> None:
    async with stack(llm=ScriptedLLM(stalls=True)) as gateway, connect(gateway) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
        await anext(stream)
        await stream.close()
        await happening(gateway.llm.cancelled)
