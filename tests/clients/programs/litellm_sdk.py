"""LiteLLM's SDK: OpenAI-compatible by prefix, and its hints and exceptions."""

from __future__ import annotations

import litellm
import pytest


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
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
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


def test_a_long_prompt_is_recognised(options: dict[str, str]) -> None:
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(messages=ask(text("word " * 20_000)), **options)
