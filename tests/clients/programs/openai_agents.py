"""openai-agents: its default, which is the Responses API, and its chat completions."""

from __future__ import annotations

from typing import Literal

import pytest
from agents import (
    Agent,
    Model,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(True)  # traces go to OpenAI
FORMS = {"responses": OpenAIResponsesModel, "chat": OpenAIChatCompletionsModel}


class Animal(BaseModel):
    name: Literal["cat", "dog", "panda"]


@function_tool
def get_weather(city: str) -> str:
    """Tells the weather."""
    return f"It is sunny in {city}."


@function_tool
def feed_animal(animal: Literal["cat", "dog", "panda"]) -> str:
    """Feeds an animal."""
    return f"The {animal} has eaten."


def connected(form: str, url: str, model: str) -> Model:
    return FORMS[form](model=model, openai_client=AsyncOpenAI(base_url=url, api_key="none"))


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def served(form: str, url: str, model: str) -> Model:
    return connected(form, url, model)


async def test_answer(served: Model) -> None:
    agent = Agent("assistant", instructions="Be brief.", model=served)
    answer = await Runner.run(agent, "Hello")
    assert answer.final_output


async def test_picture_and_second_turn(served: Model, data_url: str) -> None:
    agent = Agent("assistant", model=served)
    parts = [
        {"type": "input_text", "text": "What do you see in the picture?"},
        {"type": "input_image", "image_url": data_url, "detail": "low"},
    ]
    first = await Runner.run(agent, [{"role": "user", "content": parts}])
    assert "panda" in first.final_output
    again = {"role": "user", "content": "Who are you?"}
    assert (await Runner.run(agent, [*first.to_input_list(), again])).final_output


async def test_stream(served: Model) -> None:
    answer = Runner.run_streamed(Agent("assistant", model=served), "Hello")
    kinds = [event.data.type async for event in answer.stream_events() if hasattr(event, "data")]
    assert "response.output_text.delta" in kinds
    assert answer.final_output


async def test_output_type(served: Model) -> None:
    agent = Agent("assistant", output_type=Animal, model=served)
    answer = await Runner.run(agent, "Name an animal.")
    assert isinstance(answer.final_output, Animal)


async def test_any_model_calls(served: Model) -> None:
    agent = Agent(
        "assistant",
        tools=[feed_animal],
        tool_use_behavior="stop_on_first_tool",
        model_settings=ModelSettings(tool_choice="required"),
        model=served,
    )
    answer = await Runner.run(agent, "Feed the animal.")
    assert answer.final_output.endswith("has eaten.")


@pytest.mark.parametrize("streamed", [False, True])
async def test_tool_loop(form: str, perfect_url: str, model: str, streamed: bool) -> None:
    agent = Agent("assistant", tools=[get_weather], model=connected(form, perfect_url, model))
    question = "What is the weather in Paris?"
    if streamed:
        answer = Runner.run_streamed(agent, question)
        assert [event async for event in answer.stream_events()]
    else:
        answer = await Runner.run(agent, question)
    assert "It is sunny in Paris." in answer.final_output
