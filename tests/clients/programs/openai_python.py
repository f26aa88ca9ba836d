"""openai-python: the calls of its own documentation, of chat, responses and completions."""

from __future__ import annotations

from typing import Literal

import pytest
from openai import AsyncOpenAI, OpenAI, pydantic_function_tool
from pydantic import BaseModel

ASK = "What do you see in the picture?"


class Animal(BaseModel):
    name: Literal["cat", "dog", "panda"]


class FeedAnimal(BaseModel):
    """Feeds an animal."""

    animal: Literal["cat", "dog", "panda"]
    food: Literal["fish", "bones", "bamboo"]


FEED = pydantic_function_tool(FeedAnimal)
# Of the Responses API, where a function stands without the object around it.
FEED_FUNCTION = {"type": "function", **FEED["function"]}
FEED_ORDER = [{"role": "user", "content": "Feed the animal."}]


@pytest.fixture
def client(url: str) -> OpenAI:
    return OpenAI(base_url=url, api_key="none")


def question(data_url: str) -> list[object]:
    image = {"type": "image_url", "image_url": {"url": data_url, "detail": "low"}}
    return [{"role": "user", "content": [{"type": "text", "text": ASK}, image]}]


def question_items(data_url: str) -> list[object]:
    image = {"type": "input_image", "image_url": data_url, "detail": "low"}
    return [{"role": "user", "content": [{"type": "input_text", "text": ASK}, image]}]


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
    assert len(answer.choices[0].logprobs.content) == answer.usage.completion_tokens


def test_fingerprint(toy_url: str, model: str) -> None:
    client = OpenAI(base_url=toy_url, api_key="none")
    assert client.chat.completions.create(model=model, messages=FEED_ORDER).system_fingerprint


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


def test_forced_call(client: OpenAI, model: str) -> None:
    completion = client.chat.completions.parse(
        model=model, messages=FEED_ORDER, tools=[FEED], tool_choice="required"
    )
    (choice,) = completion.choices
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert call.id
    assert isinstance(call.function.parsed_arguments, FeedAnimal)


def test_call_by_the_stream_helper(client: OpenAI, model: str) -> None:
    choice = {"type": "function", "function": {"name": "FeedAnimal"}}
    with client.chat.completions.stream(
        model=model, messages=FEED_ORDER, tools=[FEED], tool_choice=choice
    ) as stream:
        events = list(stream)
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    pieces = [e.arguments_delta for e in events if e.type == "tool_calls.function.arguments.delta"]
    (done,) = [e for e in events if e.type == "tool_calls.function.arguments.done"]
    assert "".join(pieces) == done.arguments == call.function.arguments
    assert isinstance(done.parsed_arguments, FeedAnimal)


def test_loop_of_calls_about_a_picture(perfect_url: str, model: str, data_url: str) -> None:
    client = OpenAI(base_url=perfect_url, api_key="none")
    messages = [*question(data_url), *FEED_ORDER]
    asked = client.chat.completions.create(model=model, messages=messages, tools=[FEED])
    (call,) = asked.choices[0].message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "It has eaten."}
    messages += [asked.choices[0].message, result]
    told = client.chat.completions.create(model=model, messages=messages, tools=[FEED])
    assert "It has eaten." in told.choices[0].message.content
    assert told.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("prompt", ["Hello", ["Hello", "Good morning"], [1, 2, 3]])
def test_completion(client: OpenAI, model: str, prompt: object) -> None:
    answer = client.completions.create(model=model, prompt=prompt, max_tokens=8, logprobs=1)
    assert len(answer.choices) == (2 if isinstance(prompt[0], str) and len(prompt) == 2 else 1)
    assert all(choice.finish_reason for choice in answer.choices)
    assert answer.usage.completion_tokens > 0


def test_completion_streamed(client: OpenAI, model: str) -> None:
    stream = client.completions.create(
        model=model,
        prompt="Hello",
        max_tokens=8,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[-1].usage.completion_tokens > 0
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1]


def test_response(client: OpenAI, model: str, data_url: str) -> None:
    response = client.responses.create(
        model=model, instructions="Be brief.", input=question_items(data_url)
    )
    assert "panda" in response.output_text
    assert response.status == "completed"
    assert response.usage.input_tokens > response.usage.output_tokens > 0


def test_response_streamed(client: OpenAI, model: str, data_url: str) -> None:
    with client.responses.stream(model=model, input=question_items(data_url)) as stream:
        kinds = [event.type for event in stream]
        response = stream.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert "response.output_text.delta" in kinds
    assert "panda" in response.output_text


def test_response_parsed(client: OpenAI, model: str) -> None:
    response = client.responses.parse(model=model, input="Name an animal.", text_format=Animal)
    assert isinstance(response.output_parsed, Animal)


def test_response_that_calls(client: OpenAI, model: str) -> None:
    with client.responses.stream(
        model=model, input="Feed the animal.", tools=[FEED_FUNCTION], tool_choice="required"
    ) as stream:
        events = list(stream)
        (call,) = stream.get_final_response().output
    pieces = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert "".join(pieces) == call.arguments
    assert call.call_id
    FeedAnimal.model_validate_json(call.arguments)


def test_loop_of_responses(perfect_url: str, model: str) -> None:
    client = OpenAI(base_url=perfect_url, api_key="none")
    items: list[object] = [*FEED_ORDER]
    asked = client.responses.create(model=model, input=items, tools=[FEED_FUNCTION], store=False)
    (call,) = asked.output
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "It has eaten."}
    told = client.responses.create(
        model=model, input=[*items, *asked.output, result], tools=[FEED_FUNCTION], store=False
    )
    assert "It has eaten." in told.output_text
