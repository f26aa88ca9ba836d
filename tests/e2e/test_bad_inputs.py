"""Every bad input gets its typed 4xx: status, code and the path of what is wrong."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import pytest
from openai import APIStatusError, OpenAI

from tests.e2e.conftest import PICTURES, picture_url
from tests.hostile_pictures import png_file

IMAGE_PATH = "messages[0].content[0].image_url.url"


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def png_header(width: int, height: int) -> bytes:
    """Returns a PNG that announces a size and has no pixels."""
    return png_file((width, height), 8, 2, zlib.compress(b""))


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def user(*parts: dict[str, Any] | str) -> list[Any]:
    return [{"role": "user", "content": parts[0] if isinstance(parts[0], str) else list(parts)}]


JPEG = (PICTURES / "house.jpg").read_bytes()
CASES: dict[str, tuple[list[Any], int, str]] = {
    "not an image": (user(image(data_url(b"plain text"))), 400, IMAGE_PATH),
    "truncated jpeg": (user(image(data_url(JPEG[: len(JPEG) // 2]))), 400, IMAGE_PATH),
    "a web page": (user(image(data_url(b"<!DOCTYPE html><html></html>"))), 400, IMAGE_PATH),
    "20000x20000 header": (user(image(data_url(png_header(20000, 20000)))), 400, IMAGE_PATH),
    "wrong base64": (user(image("data:image/png;base64,@@@")), 400, IMAGE_PATH),
    "0 bytes": (user(image("data:image/png;base64,")), 400, IMAGE_PATH),
    "unknown role": ([{"role": "wizard", "content": "hi"}], 400, "messages[0].role"),
    "300 images": (user(*[image(picture_url("shapes.png"))] * 300), 400, "messages"),
    "file outside the root": (user(image("file:///etc/hostname")), 403, IMAGE_PATH),
    "file outside by dots": (
        user(image(picture_url("shapes.png").replace("shapes", "../../../pyproject"))),
        403,
        IMAGE_PATH,
    ),
    "missing file": (user(image(picture_url("nothing.png"))), 400, IMAGE_PATH),
    "link-local address": (user(image("http://169.254.169.254/x.png")), 403, IMAGE_PATH),
    "other scheme": (user(image("ftp://example.com/x.png")), 400, IMAGE_PATH),
    "too many placeholders": (
        user({"type": "text", "text": "<image> and <image>"}, image(picture_url("shapes.png"))),
        400,
        "messages[0].content",
    ),
    "no messages": ([], 400, "messages"),
    "context too long": (user("a" * 40_000), 400, "messages"),
}


@pytest.mark.parametrize(("messages", "status", "param"), CASES.values(), ids=CASES)
def test_messages(client: OpenAI, model: str, messages: list[Any], status: int, param: str) -> None:
    with pytest.raises(APIStatusError) as info:
        client.chat.completions.create(model=model, messages=messages, max_tokens=1)
    assert info.value.status_code == status
    assert info.value.param == param
    assert info.value.code


@pytest.mark.parametrize(
    ("option", "value", "param", "words"),
    [
        ("temperature", 3, "temperature", "temperature is 3"),
        ("top_p", -1, "top_p", "is -1"),
        ("max_tokens", 0, "max_tokens", "is 0"),
        ("n", 17, "n", "17 choices"),
        ("tools", [{"type": "web_search"}], "tools[0].type", "describe it as a function"),
        ("response_format", {"type": "xml"}, "response_format.type", "must be 'text'"),
        ("top_logprobs", 2, "top_logprobs", "2 alternatives"),
        ("stop", ["x"] * 17, "stop", "17"),
        ("best_of", 4, "best_of", "use 'n'"),
    ],
)
def test_options(
    client: OpenAI, model: str, option: str, value: Any, param: str, words: str
) -> None:
    with pytest.raises(APIStatusError) as info:
        client.chat.completions.create(model=model, messages=user("hi"), extra_body={option: value})
    assert info.value.status_code == 400
    assert info.value.param == param
    assert words in info.value.message


def test_a_prompt_that_is_too_long_is_known_by_both_phrases(client: OpenAI, model: str) -> None:
    """LangChain looks for the first, litellm for the second."""
    with pytest.raises(APIStatusError) as info:
        client.chat.completions.create(model=model, messages=user("a" * 40_000))
    assert info.value.code == "context_length_exceeded"
    assert "prompt is too long" in info.value.message
    assert "This model's maximum context length is 32768 tokens" in info.value.message


def test_refused_stream_has_a_status_too(client: OpenAI, model: str) -> None:
    with pytest.raises(APIStatusError) as info:
        client.chat.completions.create(
            model=model, messages=user(image(data_url(b"no"))), stream=True
        )
    assert info.value.status_code == 400
