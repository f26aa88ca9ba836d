"""LlamaIndex's OpenAILike, with `is_chat_model=True`."""

from __future__ import annotations

from pathlib import Path

import pytest
from llama_index.core.llms import ChatMessage, ImageBlock, MessageRole, TextBlock
from llama_index.llms.openai_like import OpenAILike


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
