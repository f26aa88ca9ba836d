"""LlamaIndex's OpenAILike: with `is_chat_model=True`, and by default, which is completions."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from llama_index.core.llms import ChatMessage, ImageBlock, MessageRole, TextBlock
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class Animal(BaseModel):
    name: Literal["cat", "dog", "panda"]


@pytest.fixture
def llm(url: str, model: str) -> OpenAILike:
    return OpenAILike(model=model, api_base=url, api_key="none", is_chat_model=True)


def test_complete(llm: OpenAILike) -> None:
    assert llm.complete("Hello").text


def test_unnamed_model(url: str) -> None:
    nameless = OpenAILike(model="", api_base=url, api_key="none", is_chat_model=True)
    assert nameless.complete("Hello").text


def test_stream(llm: OpenAILike) -> None:
    messages = [
        ChatMessage(role=MessageRole.SYSTEM, content="Be brief."),
        ChatMessage(role=MessageRole.USER, content="Hello"),
    ]
    assert "".join(chunk.delta or "" for chunk in llm.stream_chat(messages))


async def test_picture(llm: OpenAILike, picture: Path) -> None:
    question = TextBlock(text="What do you see in the picture?")
    message = ChatMessage(role=MessageRole.USER, blocks=[question, ImageBlock(path=picture)])
    answer = await llm.achat([message])
    assert "panda" in answer.message.content


def test_completion_by_default(url: str, model: str) -> None:
    completing = OpenAILike(model=model, api_base=url, api_key="none", max_tokens=16)
    assert completing.complete("Once upon a time").raw.usage.completion_tokens > 0
    assert list(completing.stream_complete("Once upon a time"))


def test_structured_by_a_tool(url: str, model: str) -> None:
    llm = OpenAILike(
        model=model,
        api_base=url,
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=True,
    )
    answer = llm.as_structured_llm(Animal).complete("Name an animal.")
    assert isinstance(answer.raw, Animal)


def test_tool(perfect_url: str, model: str) -> None:
    def get_weather(city: str) -> str:
        """Tells the weather."""
        return f"It is sunny in {city}."

    llm = OpenAILike(
        model=model,
        api_base=perfect_url,
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=True,
    )
    tool = FunctionTool.from_defaults(get_weather)
    answer = llm.predict_and_call([tool], "What is the weather in Paris?")
    assert answer.response == "It is sunny in Paris."
