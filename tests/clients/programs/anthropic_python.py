"""anthropic: the calls of its own documentation."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Literal

import pytest
from anthropic import Anthropic, AsyncAnthropic, BadRequestError
from pydantic import BaseModel, ConfigDict


class FeedAnimal(BaseModel):
    model_config = ConfigDict(extra="forbid")  # or a weak model goes on with properties of its own

    animal: Literal["cat", "dog", "panda"]
    food: Literal["fish", "bones", "bamboo"]


FEED = {
    "name": "feed_animal",
    "description": "Feeds an animal.",
    "input_schema": FeedAnimal.model_json_schema(),
}
ORDER = {"role": "user", "content": "Feed the animal."}


def connected(url: str) -> Anthropic:
    return Anthropic(base_url=url.removesuffix("/v1"), api_key="none")  # it adds /v1 itself


@pytest.fixture
def client(url: str) -> Anthropic:
    return connected(url)


@pytest.fixture
def question(picture: Path) -> dict[str, object]:
    data = base64.b64encode(picture.read_bytes()).decode()
    source = {"type": "base64", "media_type": "image/png", "data": data}
    text = {"type": "text", "text": "What do you see in the picture?"}
    return {"role": "user", "content": [{"type": "image", "source": source}, text]}


def test_message(client: Anthropic, model: str, question: dict[str, object]) -> None:
    message = client.messages.create(
        model=model, max_tokens=100, system="Be brief.", messages=[question]
    )
    assert "panda" in message.content[0].text
    assert message.stop_reason == "end_turn"
    assert message.role == "assistant"
    assert message.usage.output_tokens > 0


def test_stream(client: Anthropic, model: str, question: dict[str, object]) -> None:
    with client.messages.stream(model=model, max_tokens=100, messages=[question]) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert "panda" in text
    assert message.content[0].text == text
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens > 0


async def test_async_events(url: str, model: str) -> None:
    async with AsyncAnthropic(base_url=url.removesuffix("/v1"), api_key="none") as client:
        hello = {"role": "user", "content": "Hello"}
        stream = await client.messages.create(
            model=model, max_tokens=100, messages=[hello], stream=True
        )
        kinds = [event.type async for event in stream if event.type != "ping"]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_forced_call_in_a_stream(client: Anthropic, model: str) -> None:
    with client.messages.stream(
        model=model, max_tokens=200, messages=[ORDER], tools=[FEED], tool_choice={"type": "any"}
    ) as stream:
        partials = [event.partial_json for event in stream if event.type == "input_json"]
        message = stream.get_final_message()
    (call,) = message.content
    assert message.stop_reason == "tool_use"
    assert "".join(partials)
    FeedAnimal.model_validate(call.input)


def test_loop_of_calls(perfect_url: str, model: str, question: dict[str, object]) -> None:
    client = connected(perfect_url)
    messages: list[dict[str, object]] = [question, {"role": "assistant", "content": "A panda."}]
    messages.append(ORDER)
    asked = client.messages.create(model=model, max_tokens=100, messages=messages, tools=[FEED])
    *_, call = asked.content
    assert call.type == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "It has eaten."}
    messages += [{"role": "assistant", "content": asked.content}]
    messages += [{"role": "user", "content": [result]}]
    told = client.messages.create(model=model, max_tokens=100, messages=messages, tools=[FEED])
    assert "It has eaten." in told.content[0].text


def test_tokens_are_counted(toy_url: str, model: str, question: dict[str, object]) -> None:
    client = connected(toy_url)
    without = client.messages.count_tokens(model=model, messages=[ORDER])
    told = client.messages.count_tokens(model=model, messages=[question], tools=[FEED])
    assert without.input_tokens < 256 < told.input_tokens


def test_stop_sequence(toy_url: str, model: str, question: dict[str, object]) -> None:
    message = connected(toy_url).messages.create(
        model=model, max_tokens=100, messages=[question], stop_sequences=["panda"]
    )
    assert message.stop_reason == "stop_sequence"
    assert message.stop_sequence == "panda"
    assert "panda" not in message.content[0].text


def test_error(toy_url: str, model: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        connected(toy_url).messages.create(model=model, max_tokens=1, messages=[])
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == "invalid_request_error"
