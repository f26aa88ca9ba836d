"""Images in base64 alone: known by their place in the body, in whatever pieces it arrives."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.images.data_urls import Body, BodyReader, ContentLimits
from gateway.images.json_paths import MAX_TOKEN_COUNT
from gateway.memory import Memory, Share
from protos.errors import InvalidArgumentError, InvalidImageError

MIB = 1 << 20
LIMITS = ContentLimits(max_text_byte_count=MIB, max_image_count=9, max_image_byte_count=3000)
PLACES = {
    (b"messages", None, b"content", None, b"source", b"data"),
    (b"messages", None, b"content", None, b"source", b"url"),
}
NAMES = ["data", "url", "source", "content", "messages", "x", 'a"data', "\\", "[", "{"]


def take_apart(body: bytes, *cuts: int, limits: ContentLimits = LIMITS) -> Body:
    """Returns the body that arrives in pieces, cut at these places."""
    reader = BodyReader(limits, Share(Memory(64 * MIB)), PLACES)
    places = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    for start, end in zip(places, [*places[1:], len(body)], strict=True):
        reader.feed(body[start:end])
    return reader.finish()


def text_of(image: bytes) -> str:
    return base64.b64encode(image).decode()


def part(image: bytes, *order: str) -> dict[str, Any]:
    """Returns an image's part whose source has its members in an order."""
    source = {"type": "base64", "media_type": "image/png", "data": text_of(image)}
    return {"type": "image", "source": {name: source[name] for name in order or source}}


def in_messages(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def sources(value: Any) -> list[dict[str, Any]]:
    return [part["source"] for part in value["messages"][0]["content"] if "source" in part]


# What looks like an image where none is: in a tool's input, in a schema, in a text.
lookalikes = st.recursive(
    st.sampled_from(
        [text_of(b"decoy" * 20), "data:image/png;base64,aGk=", '{"data": "aGk="}', "\\"]
    )
    | st.integers()
    | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=8,
)


@example([b"\xfb\xff" * 90], {"source": {"data": text_of(b"decoy")}}, 0, list(range(2000)), "")
@given(
    st.lists(st.binary(max_size=300), max_size=3),
    lookalikes,
    st.integers(0, 999),
    st.lists(st.integers(min_value=0), max_size=9),
    st.sampled_from(["", " ", "\n\t"]),
)
def test_images_are_taken_and_all_else_stays_as_it_was(
    images: list[bytes], lookalike: Any, seed: int, cuts: list[int], space: str
) -> None:
    order = ["type", "media_type", "data"]
    random.Random(seed).shuffle(order)
    call = {"type": "tool_use", "input": lookalike}
    text = {"type": "text", "text": json.dumps(in_messages(part(b"quoted")))}
    value = {
        "system": lookalike,
        **in_messages(call, text, *(part(image, *order) for image in images), call),
        "tools": [{"input_schema": lookalike}, in_messages(part(b"deeper"))],
        "data": text_of(b"at the top"),
    }
    written = json.dumps(value, separators=(f"{space},", f":{space}")).encode()
    body = take_apart(written, *cuts)
    left = json.loads(body.text)
    found = []
    for source in sources(left):
        found.append(bytes(body.attachments.take(source["data"]).content))
        source["data"] = text_of(found[-1])
    assert found == images
    assert not body.attachments.images
    assert left == value


def test_a_body_is_the_same_at_every_cut() -> None:
    value = in_messages(part(b"first" * 9), {"input": part(b"none")}, part(b"second", "data"))
    written = json.dumps(value).encode()
    for cut in range(len(written)):
        body = take_apart(written, cut)
        names = [source["data"] for source in sources(json.loads(body.text))]
        files = [bytes(body.attachments.take(name).content) for name in names]
        assert files == [b"first" * 9, b"second"]
        assert not body.attachments.images


def test_a_data_url_is_an_image_at_its_place_alone() -> None:
    url = "data:image/png;base64,aGk="
    value = in_messages({"source": {"type": "url", "url": url}}, {"input": {"url": url}})
    body = take_apart(json.dumps(value).encode(), *range(400))
    assert len(body.attachments.images) == 1
    content = json.loads(body.text)["messages"][0]["content"]
    assert content[0]["source"]["url"] in body.attachments.images
    assert content[1]["input"]["url"] == url


def test_a_name_with_an_escape_stays_text() -> None:
    written = json.dumps(in_messages(part(b"hi"))).replace('"data"', '"d\\u0061ta"')
    body = take_apart(written.encode())
    assert not body.attachments.images
    assert sources(json.loads(body.text))[0]["data"] == text_of(b"hi")


def test_what_is_no_base64_is_told_when_it_is_read() -> None:
    value = in_messages({"source": {"data": "aG*k"}})
    body = take_apart(json.dumps(value).encode(), *range(90))
    (name,) = body.attachments.images
    with pytest.raises(InvalidImageError, match=r"the image's base64 may not hold '\*'"):
        body.attachments.take(name)


def test_a_large_image_is_never_text() -> None:
    image = random.Random(0).randbytes(20 * MIB)
    written = json.dumps(in_messages(part(image))).encode()
    limits = ContentLimits(1000, 1, 32 * MIB)
    body = take_apart(written, *range(0, len(written), 65_537), limits=limits)
    assert len(body.text) < 200
    (name,) = body.attachments.images
    assert body.attachments.take(name).content == image


@pytest.mark.parametrize(
    "written",
    [
        b'{"messages":[{"content":[{"source":{"data":"',
        b']]]}}"data":"aGk="',
        b'"data":"aGk="}',
        b'"":"data":"aGk=","data":"',
        b'[{"a":1}:"x" "data":"aGk="',
    ],
)
def test_what_is_no_json_stays_none(written: bytes) -> None:
    body = take_apart(written, *range(len(written)))
    with pytest.raises(ValueError, match="line 1"):
        json.loads(body.text)


def test_a_body_of_brackets_holds_nobody_up() -> None:
    written = b"[" * (MAX_TOKEN_COUNT + 1) + b'"data":"'
    with pytest.raises(InvalidArgumentError, match="131072 strings, lists and objects"):
        take_apart(written)
    take_apart(written[:-8])  # read_json refuses it
