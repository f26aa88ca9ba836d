"""The requests of the customer's own curl lines, command-line clients and gradio page.

Field by field as their public repository, NetEase-Media/grps_trtllm, sends them; the pictures and
the questions are those of the toy model, so that an answer can be wrong. All but the curl lines
send no name of a model.
"""

from __future__ import annotations

import base64
import json
import shutil
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI, Stream
from openai.types.chat import ChatCompletionChunk

from gateway.local.stack import Stack
from models.demo.__main__ import PICTURES, picture_server
from tests.served_model import CUSTOMERS_MODEL

Message = dict[str, Any]
QUESTION = "What do you see in the picture?"
SEEN = "panda"
FRAME_COUNT = 6
# What the page's slider allows; the toy model's context has 8,192 tokens.
MOST_TOKENS = 32768


@pytest.fixture(scope="module")
def uploads(readable: Path) -> Path:
    """A folder as gradio keeps them: a digest's, with files under the names that people gave."""
    folder = readable / "gradio" / "5d41402abc4b2a76b9719d911017c592"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def client(served: Stack) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{served.url}/v1", api_key="cannot be empty", max_retries=0) as client:
        yield client


def copied(name: str, folder: Path, copy: str) -> str:
    """Copies one of the demo's pictures, and returns the URL that the page makes of the path."""
    shutil.copyfile(PICTURES / name, folder / copy)
    return f"file://{folder / copy}"


def image_part(url: str) -> Message:
    return {"type": "image_url", "image_url": {"url": url}}


def asked(text: str, *urls: str) -> Message:
    """A question as the curl lines and the page write it: the text first."""
    return {
        "role": "user",
        "content": [{"type": "text", "text": text}, *map(image_part, urls)],
    }


def curl(stack: Stack, *messages: Message, max_tokens: int = 256) -> dict[str, Any]:
    """Sends a curl line of their documentation, and returns the body of its answer."""
    body = {"model": CUSTOMERS_MODEL, "messages": messages, "max_tokens": max_tokens}
    request = urllib.request.Request(
        f"{stack.url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def text_of(answer: dict[str, Any]) -> str:
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop"
    return str(choice["message"]["content"])


def test_answer_has_all_that_their_sample_shows(served: Stack, uploads: Path) -> None:
    url = copied("scene.png", uploads, "image1.png")
    answer = curl(served, asked(f"<image>\n{QUESTION}", url))
    assert SEEN in text_of(answer)
    assert {"id", "object", "created", "model", "system_fingerprint", "usage"} <= set(answer)
    assert answer["object"] == "chat.completion"
    assert answer["model"] == CUSTOMERS_MODEL
    assert answer["system_fingerprint"]
    assert answer["choices"][0]["logprobs"] is None
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_picture_of_a_web_server(served: Stack) -> None:
    with picture_server(PICTURES) as address:
        answer = curl(
            served, asked(f"<image>\n{QUESTION}", f"{address}/scene.png"), max_tokens=1024
        )
    assert SEEN in text_of(answer)


def test_two_pictures_and_a_second_turn(served: Stack, uploads: Path) -> None:
    urls = [copied(f"pair-{n}.png", uploads, f"image{n}.png") for n in (1, 2)]
    first = asked(f"Image-1: <image>\nImage-2: <image>\n{QUESTION}", *urls)
    answer = curl(served, first)
    follow_up = {"role": "user", "content": "What is in the second picture?"}
    second = curl(served, first, {"role": "assistant", "content": text_of(answer)}, follow_up)
    assert text_of(second)
    assert second["usage"]["prompt_tokens"] > answer["usage"]["prompt_tokens"]


def test_six_frames(served: Stack, uploads: Path) -> None:
    names = [f"frame_{n}.png" for n in range(FRAME_COUNT)]
    urls = [copied(f"frame-{n + 1}.png", uploads, name) for n, name in enumerate(names)]
    places = "".join(f"Frame{n + 1}:<image>\n" for n in range(FRAME_COUNT))
    answer = curl(served, asked(f"{places}{QUESTION}", *urls), max_tokens=512)
    assert text_of(answer)
    assert answer["usage"]["prompt_tokens"] > FRAME_COUNT * 256


@pytest.mark.parametrize("is_url", [True, False], ids=["openai_cli", "base64_img_cli"])
def test_command_lines_put_the_picture_first(
    client: OpenAI, served: Stack, uploads: Path, is_url: bool
) -> None:
    url = copied("scene.png", uploads, "image1.png")
    if not is_url:  # their MIME type is the file's ending, which need not be one
        data = base64.b64encode((PICTURES / "scene.png").read_bytes()).decode()
        url = f"data:image/jpg;base64,{data}"
    question = f"<image>\n{QUESTION}"
    content = [image_part(url), {"type": "text", "text": question}]
    messages: list[Any] = [{"role": "user", "content": content}]
    whole = client.chat.completions.create(model="", messages=messages, max_tokens=1024)
    chunks = list(
        client.chat.completions.create(model="", messages=messages, max_tokens=1024, stream=True)
    )
    assert whole.usage is not None
    text_first = curl(served, asked(question, url))
    assert whole.choices[0].message.content == text_of(text_first)
    assert whole.usage.prompt_tokens == text_first["usage"]["prompt_tokens"]
    assert shown(chunks) == whole.choices[0].message.content


def test_command_lines_of_text(client: OpenAI) -> None:
    messages: list[Any] = [{"content": "Hello", "role": "user"}]
    answer = client.chat.completions.create(
        model="", messages=messages, top_p=0.3, max_tokens=1024, temperature=0.1, stream=False
    )
    assert answer.choices[0].message.content


def test_benchmark(client: OpenAI) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Hello"},
    ]
    answer = client.chat.completions.create(
        model="",
        messages=messages,
        max_tokens=512,
        stop=["<|im_start|>", "<|im_end|>"],
        top_p=0.3,
        temperature=0.1,
        extra_body={"repetition_penalty": 1.0},
    )
    assert answer.choices[0].message.content


def shown(chunks: Sequence[ChatCompletionChunk] | Stream[ChatCompletionChunk]) -> str:
    """Returns what the page shows in the end: it takes the first choice of every chunk."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def page(client: OpenAI, messages: Sequence[Message]) -> Stream[ChatCompletionChunk]:
    """Sends what the page of pictures sends: neither a name nor a limit."""
    said: Any = list(messages)
    return client.chat.completions.create(model="", messages=said, stream=True)


def test_page_of_text_allows_more_tokens_than_there_are(client: OpenAI) -> None:
    messages: list[Any] = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Who are you?"},
    ]
    stream = client.chat.completions.create(
        model="", messages=messages, stream=True, max_tokens=MOST_TOKENS
    )
    assert shown(stream)


def test_page_with_an_upload_and_a_second_turn(client: OpenAI, uploads: Path) -> None:
    first = asked(f"<image>\n{QUESTION}", copied("scene.png", uploads, "截图 2024-12-19 1.png"))
    text = shown(page(client, [first]))
    assert SEEN in text
    second = asked("What animal is in the picture?")
    assert SEEN in shown(page(client, [first, {"role": "assistant", "content": text}, second]))


def test_page_with_two_uploads(client: OpenAI, uploads: Path) -> None:
    urls = [copied(f"pair-{n}.png", uploads, f"IMG {n}.png") for n in (1, 2)]
    assert shown(page(client, [asked(f"Image-1: <image>\nImage-2: <image>\n{QUESTION}", *urls)]))


def test_page_removes_a_films_frames_when_the_stream_begins(client: OpenAI, readable: Path) -> None:
    folder = readable / "video"
    folder.mkdir()
    urls = [copied(f"frame-{n}.png", folder, f"frame{n}.png") for n in range(1, FRAME_COUNT + 1)]
    places = "".join(f"Frame{n}: <image>\n" for n in range(1, FRAME_COUNT + 1))
    stream = page(client, [asked(f"{places}{QUESTION}", *urls)])
    shutil.rmtree(folder)
    assert shown(stream)


def test_page_after_an_error_goes_on(client: OpenAI) -> None:
    messages = [
        asked(QUESTION),
        {"role": "assistant", "content": "error: `<image>`与实际图片数量不一致。"},
        asked("Hello"),
    ]
    assert shown(page(client, messages))
