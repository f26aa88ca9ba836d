"""LiteLLM's SDK: OpenAI-compatible by prefix, and its hints and exceptions."""

from __future__ import annotations

import json

import litellm
import pytest

ANIMALS = ["cat", "dog", "panda"]
FEED = {
    "type": "function",
    "function": {
        "name": "feed_animal",
        "description": "Feeds an animal.",
        "parameters": {
            "type": "object",
            "properties": {"animal": {"type": "string", "enum": ANIMALS}},
            "required": ["animal"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
def options(url: str, model: str) -> dict[str, str]:
    return {"model": f"openai/{model}", "api_base": url, "api_key": "none"}


def ask(*parts: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": list(parts)}]


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def test_answer(options: dict[str, str], data_url: str) -> None:
    image = {"type": "image_url", "image_url": data_url}  # a plain string, as LiteLLM allows
    answer = litellm.completion(
        messages=ask(text("What do you see in the picture?"), image), **options
    )
    assert "panda" in answer.choices[0].message.content
    assert answer.usage.prompt_tokens > 256


async def test_stream_with_usage(options: dict[str, str]) -> None:
    stream = await litellm.acompletion(
        messages=ask(text("Hello")),
        stream=True,
        stream_options={"include_usage": True},
        **options,
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert litellm.stream_chunk_builder(chunks).usage.completion_tokens > 0


def test_hints_pass(options: dict[str, str]) -> None:
    answer = litellm.completion(
        messages=ask(text("Hello")),
        reasoning_effort="low",
        allowed_openai_params=["reasoning_effort"],
        user="ada",
        metadata={"trace": "1"},
        **options,
    )
    assert answer.choices[0].message.content


def test_text_completion(url: str, model: str) -> None:
    answer = litellm.text_completion(
        model=f"text-completion-openai/{model}",
        api_base=url,
        api_key="none",
        prompt="Once upon a time",
        max_tokens=16,
    )
    assert answer.choices[0].finish_reason
    assert answer.usage.completion_tokens > 0


def test_forced_call(options: dict[str, str]) -> None:
    answer = litellm.completion(
        messages=ask(text("Feed the animal.")), tools=[FEED], tool_choice="required", **options
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "feed_animal"
    assert json.loads(call.function.arguments)["animal"] in ANIMALS


def test_call_in_a_stream(options: dict[str, str]) -> None:
    stream = litellm.completion(
        messages=ask(text("Feed the animal.")),
        tools=[FEED],
        tool_choice="required",
        stream=True,
        **options,
    )
    (choice,) = litellm.stream_chunk_builder(list(stream)).choices
    assert choice.finish_reason == "tool_calls"
    assert json.loads(choice.message.tool_calls[0].function.arguments)["animal"] in ANIMALS


def test_a_long_prompt_is_recognised(toy_url: str, options: dict[str, str]) -> None:
    options["api_base"] = toy_url
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(messages=ask(text("word " * 20_000)), **options)
