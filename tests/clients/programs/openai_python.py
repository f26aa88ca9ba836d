"""openai-python: the calls of its own documentation."""

from __future__ import annotations

from typing import Literal

import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel


class Animal(BaseModel):
    name: Literal["cat", "dog", "panda"]


@pytest.fixture
def client(url: str) -> OpenAI:
    return OpenAI(base_url=url, api_key="none")


def question(data_url: str) -> list[object]:
    image = {"type": "image_url", "image_url": {"url": data_url, "detail": "low"}}
    text = {"type": "text", "text": "What do you see in the picture?"}
    return [{"role": "user", "content": [text, image]}]


def test_models(client: OpenAI, model: str) -> None:
    names = [served.id for served in client.models.list()]
    assert names[0] == model
    assert client.models.retrieve(model).id == model


@pytest.mark.parametrize("named", [True, False])
def test_answer(client: OpenAI, model: str, data_url: str, named: bool) -> None:
    answer = client.chat.completions.create(
        model=model if named else "", messages=question(data_url), logprobs=True, top_logprobs=2
    )
    assert "panda" in answer.choices[0].message.content
    assert answer.model == model
    assert answer.system_fingerprint
    assert len(answer.choices[0].logprobs.content) == answer.usage.completion_tokens


async def test_async_stream(url: str, model: str, data_url: str) -> None:
    async with AsyncOpenAI(base_url=url, api_key="none") as client:
        stream = await client.chat.completions.create(
            model=model,
            messages=question(data_url),
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert "panda" in text
    assert chunks[-1].usage.completion_tokens > 0


def test_stream_helper(client: OpenAI, model: str) -> None:
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    with client.chat.completions.stream(model=model, messages=messages) as stream:
        kinds = {event.type for event in stream}
        completion = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert completion.choices[0].finish_reason == "stop"


def test_parse(client: OpenAI, model: str) -> None:
    completion = client.chat.completions.parse(
        model=model,
        messages=[{"role": "user", "content": "Name an animal."}],
        response_format=Animal,
    )
    assert isinstance(completion.choices[0].message.parsed, Animal)
