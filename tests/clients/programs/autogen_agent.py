"""AutoGen's default agent, which names every message and sends a system message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.messages import ModelClientStreamingChunkEvent, MultiModalMessage
from autogen_core import Image
from autogen_core.models import UserMessage
from autogen_core.tools import FunctionTool
from autogen_ext.models.openai import OpenAIChatCompletionClient

# AutoGen has to be told what a model that it does not know can do.
MODEL_INFO = {
    "vision": True,
    "function_calling": True,
    "json_output": True,
    "family": "unknown",
    "structured_output": True,
}


@pytest.fixture
def client(url: str, model: str) -> OpenAIChatCompletionClient:
    return OpenAIChatCompletionClient(
        model=model, base_url=url, api_key="none", model_info=MODEL_INFO
    )


async def test_agent_answers_and_remembers(client: OpenAIChatCompletionClient) -> None:
    agent = AssistantAgent("assistant", model_client=client)
    first = await agent.run(task="Hello")
    second = await agent.run(task="Who are you?")
    assert first.messages[-1].content
    assert second.messages[-1].content
    assert second.messages[-1].models_usage.prompt_tokens > 0


async def test_agent_streams(client: OpenAIChatCompletionClient) -> None:
    agent = AssistantAgent("assistant", model_client=client, model_client_stream=True)
    chunks = [
        event.content
        async for event in agent.run_stream(task="Hello")
        if isinstance(event, ModelClientStreamingChunkEvent)
    ]
    assert "".join(chunks)


async def test_agent_sees_a_picture(client: OpenAIChatCompletionClient, picture: Path) -> None:
    agent = AssistantAgent("assistant", model_client=client, system_message=None)
    message = MultiModalMessage(
        content=["What do you see in the picture?", Image.from_file(picture)], source="user"
    )
    answer = await agent.run(task=message)
    assert "panda" in answer.messages[-1].content


async def test_agent_uses_a_tool(perfect_url: str, model: str) -> None:
    async def get_weather(city: str) -> str:
        """Tells the weather."""
        return f"It is sunny in {city}."

    client = OpenAIChatCompletionClient(
        model=model, base_url=perfect_url, api_key="none", model_info=MODEL_INFO
    )
    agent = AssistantAgent(
        "assistant", model_client=client, tools=[get_weather], reflect_on_tool_use=True
    )
    answer = await agent.run(task="What is the weather in Paris?")
    assert "It is sunny in Paris." in answer.messages[-1].content


async def test_tool_is_called_by_any_model(client: OpenAIChatCompletionClient) -> None:
    async def feed_animal(animal: Literal["cat", "dog", "panda"]) -> str:
        """Feeds an animal."""
        return animal

    tool = FunctionTool(feed_animal, description="Feeds an animal.")
    task = UserMessage(content="Feed the animal.", source="user")
    answer = await client.create([task], tools=[tool], tool_choice="required")
    (call,) = answer.content
    assert answer.finish_reason == "function_calls"
    assert json.loads(call.arguments)["animal"] in {"cat", "dog", "panda"}
