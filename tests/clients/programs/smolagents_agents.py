"""smolagents: both kinds of agent, with OpenAIServerModel."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from smolagents import CodeAgent, OpenAIServerModel, ToolCallingAgent, tool

CITIES: list[str] = []


@tool
def get_weather(city: str) -> str:
    """Tells the weather.

    Args:
        city: Where.
    """
    CITIES.append(city)
    return f"It is sunny in {city}."


@pytest.fixture
def served(perfect_url: str, model: str) -> OpenAIServerModel:
    return OpenAIServerModel(model, api_base=perfect_url, api_key="none")


@pytest.mark.parametrize("streamed", [False, True])
def test_tool_calling_agent(served: OpenAIServerModel, streamed: bool) -> None:
    agent = ToolCallingAgent(tools=[get_weather], model=served, stream_outputs=streamed)
    CITIES.clear()
    assert "Paris" in agent.run("What is the weather in Paris?")
    assert CITIES == ["Paris"]


@pytest.mark.parametrize("streamed", [False, True])
def test_code_agent(served: OpenAIServerModel, picture: Path, streamed: bool) -> None:
    agent = CodeAgent(tools=[], model=served, stream_outputs=streamed)
    answer = agent.run("What do you see in the picture?", images=[Image.open(picture)])
    assert "panda" in answer


def test_weak_model_makes_calls_that_parse(toy_url: str, model: str) -> None:
    served = OpenAIServerModel(model, api_base=toy_url, api_key="none", max_tokens=60)
    agent = ToolCallingAgent(tools=[get_weather], model=served)
    message = served.generate(
        [{"role": "user", "content": "What is the weather in Paris?"}],
        tools_to_call_from=[agent.tools["get_weather"]],
    )
    assert message.tool_calls[0].function.name == "get_weather"
