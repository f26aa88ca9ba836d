"""The openai client, unmodified, against three real processes."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from openai import AsyncOpenAI, NotFoundError, OpenAI

from gateway.local.stack import Stack
from models.demo.__main__ import picture_server
from tests.e2e.conftest import PICTURES, picture_url

TEXT: list[Any] = [{"role": "user", "content": "Hello, who are you?"}]


def picture_message(*urls: str, text: str = "What is this?") -> dict[str, Any]:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [{"type": "text", "text": text}, *images]}


def ask(client: OpenAI, model: str, messages: list[Any], **options: Any) -> tuple[str, int]:
    """Returns the answer's text and its prompt tokens."""
    completion = client.chat.completions.create(
        model=model, messages=messages, max_tokens=8, extra_body={"ignore_eos": True}, **options
    )
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 8
    assert completion.choices[0].finish_reason == "length"
    return completion.choices[0].message.content or "", completion.usage.prompt_tokens


def test_served_model_is_listed(client: OpenAI, model: str) -> None:
    assert model == "random-internvl"
    assert client.models.retrieve(model).id == model


def test_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as info:
        client.chat.completions.create(model="other", messages=TEXT)
    assert info.value.code == "model_not_found"


def test_streamed_answer_is_the_whole_answer(client: OpenAI, model: str) -> None:
    messages: list[Any] = [picture_message(picture_url("house.jpg"))]
    whole, prompt_tokens = ask(client, model, messages)
    chunks = list(
        client.chat.completions.create(
            model=model,
            messages=messages,
            max_tokens=8,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
    )
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == prompt_tokens
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert reasons[-1] == "length"
    assert not any(reasons[:-1])


async def test_async_client_collects(stack: Stack, model: str) -> None:
    async with AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none") as client:
        completion = await client.chat.completions.create(model=model, messages=TEXT, max_tokens=4)
    assert completion.usage is not None
    assert completion.usage.completion_tokens <= 4
    assert completion.choices[0].message.role == "assistant"


async def test_async_client_streams(stack: Stack, model: str) -> None:
    async with AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(
            model=model, messages=TEXT, max_tokens=4, stream=True
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason in ("length", "stop")


def test_a_picture_answers_alike_from_file_http_and_base64(client: OpenAI, model: str) -> None:
    data = base64.b64encode((PICTURES / "boat.jpg").read_bytes()).decode()
    with picture_server(PICTURES) as server:
        answers = [
            ask(client, model, [picture_message(url)])
            for url in (
                picture_url("boat.jpg"),
                f"{server}/boat.jpg",
                f"data:image/jpeg;base64,{data}",
            )
        ]
    assert answers[0] == answers[1] == answers[2]


def test_another_picture_answers_differently(client: OpenAI, model: str) -> None:
    boat = ask(client, model, [picture_message(picture_url("boat.jpg"))])
    shapes = ask(client, model, [picture_message(picture_url("shapes.png"))])
    assert boat[0] != shapes[0]


def test_order_of_two_pictures_matters(client: OpenAI, model: str) -> None:
    urls = [picture_url("house.jpg"), picture_url("boat.jpg")]
    forward = ask(client, model, [picture_message(*urls)])
    backward = ask(client, model, [picture_message(*reversed(urls))])
    assert forward[1] == backward[1]
    assert forward[0] != backward[0]


@pytest.mark.parametrize("detail", ["low", "high", "auto"])
def test_detail_caps_the_tiles(client: OpenAI, model: str, detail: str) -> None:
    message = picture_message(picture_url("house.jpg"))
    message["content"][1]["image_url"]["detail"] = detail
    _, prompt_tokens = ask(client, model, [message])
    _, text_tokens = ask(client, model, [{"role": "user", "content": "<\x00image>\nWhat is this?"}])
    tiles = 1 if detail == "low" else 13
    assert abs(prompt_tokens - tiles * 256 - text_tokens) < 16


def test_second_turn_remembers_the_first(client: OpenAI, model: str) -> None:
    first = [picture_message(picture_url("house.jpg"))]
    answer, first_tokens = ask(client, model, first)
    follow_up = {"role": "user", "content": "And the sky?"}
    turns = [*first, {"role": "assistant", "content": "A house."}, follow_up]
    _, second_tokens = ask(client, model, turns)
    assert second_tokens > first_tokens
    assert ask(client, model, first)[0] == answer


def test_same_seed_same_text(client: OpenAI, model: str) -> None:
    def sampled(seed: int) -> str:
        return ask(client, model, TEXT, temperature=1.0, seed=seed)[0]

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(4)}) > 1


def test_stop_string_ends_the_text(client: OpenAI, model: str) -> None:
    text, _ = ask(client, model, TEXT)
    stop = text[3:5]
    completion = client.chat.completions.create(
        model=model, messages=TEXT, max_tokens=8, stop=stop, extra_body={"ignore_eos": True}
    )
    assert completion.choices[0].finish_reason == "stop"
    assert completion.choices[0].message.content == text[: text.index(stop)]


def test_a_response_is_the_chats_answer(client: OpenAI, model: str) -> None:
    url = picture_url("house.jpg")
    answer, prompt_token_count = ask(client, model, [picture_message(url)])
    question: Any = {
        "role": "user",
        "content": [
            {"type": "input_text", "text": "What is this?"},
            {"type": "input_image", "image_url": url, "detail": "auto"},
        ],
    }
    options: Any = {"max_output_tokens": 8, "extra_body": {"ignore_eos": True}}
    whole = client.responses.create(model=model, input=[question], **options)
    events = list(client.responses.create(model=model, input=[question], stream=True, **options))
    assert (whole.output_text, whole.status) == (answer, "incomplete")
    assert whole.usage
    assert whole.usage.input_tokens == prompt_token_count
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == answer
    assert events[-1].type == "response.incomplete"
