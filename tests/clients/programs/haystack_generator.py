"""Haystack's chat generator; its messages may have names, of which we make nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage, ImageContent, StreamingChunk
from haystack.tools import Tool
from haystack.utils import Secret


@pytest.fixture
def generator(url: str, model: str) -> OpenAIChatGenerator:
    return OpenAIChatGenerator(Secret.from_token("none"), model=model, api_base_url=url)


def test_conversation_with_names(generator: OpenAIChatGenerator) -> None:
    messages = [
        ChatMessage.from_system("Be brief.", name="rules"),
        ChatMessage.from_user("Hello", name="ada"),
        ChatMessage.from_assistant("Hello!", name="assistant"),
        ChatMessage.from_user("Who are you?", name="ada"),
    ]
    (reply,) = generator.run(messages)["replies"]
    assert reply.text
    assert reply.meta["usage"]["prompt_tokens"] > 0


def test_stream(generator: OpenAIChatGenerator) -> None:
    chunks: list[StreamingChunk] = []
    answer = generator.run([ChatMessage.from_user("Hello")], streaming_callback=chunks.append)
    assert "".join(chunk.content for chunk in chunks) == answer["replies"][0].text


def test_picture(generator: OpenAIChatGenerator, picture: Path) -> None:
    parts = ["What do you see in the picture?", ImageContent.from_file_path(picture)]
    (reply,) = generator.run([ChatMessage.from_user(content_parts=parts)])["replies"]
    assert "panda" in reply.text


def test_tool(perfect_url: str, model: str) -> None:
    secret = Secret.from_token("none")
    generator = OpenAIChatGenerator(secret, model=model, api_base_url=perfect_url)
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    tool = Tool("get_weather", "Tells the weather.", parameters, lambda city: f"Sunny in {city}.")
    messages = [ChatMessage.from_user("What is the weather in Paris?")]
    (asked,) = generator.run(messages, tools=[tool])["replies"]
    (call,) = asked.tool_calls
    result = ChatMessage.from_tool(tool.invoke(**call.arguments), origin=call)
    (told,) = generator.run([*messages, asked, result], tools=[tool])["replies"]
    assert "Sunny in Paris." in told.text
