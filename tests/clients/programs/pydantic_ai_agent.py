"""pydantic-ai's agent; a type as output is a tool by default."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class Animal(BaseModel):
    name: Literal["cat", "dog", "panda"]


@pytest.fixture
def chat(url: str, model: str) -> OpenAIChatModel:
    return OpenAIChatModel(model, provider=OpenAIProvider(base_url=url, api_key="none"))


async def test_agent_remembers(toy_url: str, model: str) -> None:
    chat = OpenAIChatModel(model, provider=OpenAIProvider(base_url=toy_url, api_key="none"))
    agent = Agent(chat, instructions="Be brief.", system_prompt=("You are kind.", "You know art."))
    first = await agent.run("Hello")
    second = await agent.run("Who are you?", message_history=first.all_messages())
    assert first.output
    assert second.output
    assert second.usage().input_tokens > first.usage().input_tokens


async def test_agent_streams(chat: OpenAIChatModel) -> None:
    async with Agent(chat).run_stream("Hello") as answer:
        texts = [text async for text in answer.stream_text()]
    assert texts[-1]
    assert answer.usage().output_tokens > 0


def test_agent_sees_a_picture(chat: OpenAIChatModel, picture: Path) -> None:
    content = BinaryContent(picture.read_bytes(), media_type="image/png")
    answer = Agent(chat).run_sync(["What do you see in the picture?", content])
    assert "panda" in answer.output


async def test_output_by_default(chat: OpenAIChatModel) -> None:
    answer = await Agent(chat, output_type=Animal).run("Name an animal.")
    assert isinstance(answer.output, Animal)


async def test_output_streamed(chat: OpenAIChatModel) -> None:
    async with Agent(chat, output_type=Animal).run_stream("Name an animal.") as answer:
        assert isinstance(await answer.get_output(), Animal)


async def test_tool(perfect_url: str, model: str) -> None:
    provider = OpenAIProvider(base_url=perfect_url, api_key="none")
    agent = Agent(OpenAIChatModel(model, provider=provider))
    cities: list[str] = []

    @agent.tool_plain
    def get_weather(city: str) -> str:
        cities.append(city)
        return "It is sunny."

    answer = await agent.run("What is the weather in Paris?")
    assert cities == ["Paris"]
    assert "It is sunny." in answer.output


async def test_native_output(chat: OpenAIChatModel) -> None:
    agent = Agent(chat, output_type=NativeOutput(Animal))
    answer = await agent.run("Name an animal.")
    assert isinstance(answer.output, Animal)
