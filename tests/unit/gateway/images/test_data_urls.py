"""Bodies taken apart while they arrive: the same as when they are read whole."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.images.data_urls import Body, BodyReader, ContentLimits, decode_data_url
from gateway.memory import FREE_BYTE_COUNT, Memory, Share
from protos.errors import (
    ContextLengthError,
    ImageTooLargeError,
    InvalidArgumentError,
    InvalidImageError,
    OverloadedError,
)

LIMITS = ContentLimits(max_text_byte_count=100_000, max_image_count=4, max_image_byte_count=3000)
# Where `image_url` stands in the bodies below, and where a URL stands alone.
PLACES = {
    (*above, *image)
    for above in ((), (None,), (b"content", None), (b"messages", None), (b"input", None))
    for image in ((b"image_url", b"url"), (b"image_url",), (b"url",))
}


def take_apart(body: bytes, *cuts: int, memory: Memory | None = None) -> Body:
    """Returns the body that arrives in pieces, cut at these places."""
    reader = BodyReader(LIMITS, Share(memory or Memory(1 << 20)), PLACES)
    places = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    for start, end in zip(places, [*places[1:], len(body)], strict=True):
        reader.feed(body[start:end])
    return reader.finish()


def image_url(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def data_url(image: bytes, start: str = "data:image/png;base64,") -> str:
    return start + base64.b64encode(image).decode()


def put_together(value: Any, body: Body) -> Any:
    """Returns the JSON value with images in the places of their names."""
    if isinstance(value, dict):
        return {key: put_together(item, body) for key, item in value.items()}
    if isinstance(value, list):
        return [put_together(item, body) for item in value]
    if value in body.attachments.images:
        return bytes(body.attachments.take(value).content)
    return value


def escaped(text: str, style: str) -> str:
    match style:
        case "slashes":  # as PHP writes them
            return text.replace("/", "\\/")
        case "unicode":  # as .NET writes some of them
            return text.replace("+", "\\u002B").replace("/", "\\u002f")
    return text


@example([b"\xff" * 90], "slashes", list(range(400)), " ")
@example([b"\xfb\xff" * 90], "unicode", list(range(600)), "")
@given(
    st.lists(st.binary(max_size=300), max_size=4),
    st.sampled_from(["", "slashes", "unicode"]),
    st.lists(st.integers(min_value=0), max_size=9),
    st.sampled_from(["", " ", "\n\t"]),
)
def test_images_and_text_are_what_they_were(
    images: list[bytes], style: str, cuts: list[int], space: str
) -> None:
    texts = [
        'a "url": "data:;base64,AAAA"',
        "data:image/png;base64,AAAA",
        "\\",
        '"',
        "\u20ac",
        "\n",
    ]
    parts = [{"type": "text", "text": text} for text in texts]
    value = [*parts, *(image_url(data_url(image)) for image in images), *parts]
    written = escaped(json.dumps(value, separators=(f"{space},", f":{space}")), style)
    body = take_apart(written.encode(), *cuts)
    assert len(body.attachments.images) == len(images)
    expected = [
        *parts,
        *(image_url("") | {"image_url": {"url": image}} for image in images),
        *parts,
    ]
    assert put_together(json.loads(body.text), body) == expected


@pytest.mark.parametrize(
    "start",
    ["DATA:;BASE64,", "data:image/svg+xml;charset=utf-8;base64,", "data:" + "a" * 100 + ";base64,"],
)
def test_any_form_of_a_data_url_is_known(start: str) -> None:
    body = take_apart(json.dumps(image_url(data_url(b"abc", start))).encode(), *range(400))
    (image,) = body.attachments.images.values()
    assert image.file().content == b"abc"


@pytest.mark.parametrize(
    "payload",
    ["a", "aG*k", "aGkhb", "aGk%2", "äöü", "aGk=aGk=", "aGk==", "====", "\ud800", "aG\\k"],
)
@pytest.mark.parametrize("cuts", [(), range(100)])
def test_what_is_no_base64_is_told_when_it_is_read(payload: str, cuts: tuple[int, ...]) -> None:
    written = json.dumps(
        image_url("data:image/png;base64," + payload), ensure_ascii="\ud800" in payload
    )
    body = take_apart(written.encode(), *cuts)
    (name,) = body.attachments.images
    with pytest.raises(InvalidImageError, match="base64"):
        body.attachments.take(name)


headers = st.sampled_from(
    [
        "data:image/png;base64,",
        "DATA:;BASE64,",
        " data:image/png; base64,",
        "\n\tdata:image/svg+xml;charset=utf-8;base64 ,",
        "data:" + "a" * 200 + ";base64,",
        "da\nta:;base64,",
    ]
)
payloads = st.builds(
    lambda content, line, end: (
        end.join(base64.b64encode(content).decode()[i : i + line] for i in range(0, 200, line))
        + end
    ),
    st.binary(max_size=90),
    st.integers(1, 80),
    st.sampled_from(["", "\n", "\r\n", " ", "\f", "%0A"]),
)
STYLES: dict[str, Callable[[str], str]] = {
    "": str,
    "slashes": lambda text: text.replace("/", "\\/"),
    "unicode": lambda text: text.replace("+", "\\u002B").replace("\\n", "\\u000a"),
    "raw lines": lambda text: text.replace("\\n", "\n").replace("\\r", "\r"),
}


@given(
    headers,
    payloads,
    st.sampled_from(sorted(STYLES)),
    st.booleans(),
    st.lists(st.integers(min_value=0), max_size=9),
)
def test_an_image_is_the_same_while_it_arrives_and_after(
    header: str, payload: str, style: str, bare: bool, cuts: list[int]
) -> None:
    """A header that is long or strange stays in the text, whose URL is decoded later."""
    url = header + payload
    part = {"image_url": url} if bare else image_url(url)
    written = STYLES[style](json.dumps({"content": [part]}))
    body = take_apart(written.encode(), *cuts)
    (left,) = json.loads(body.text, strict=False)["content"]
    found = left["image_url"] if bare else left["image_url"]["url"]
    expected = decode_data_url(url, 3000)
    if found in body.attachments.images:
        assert body.attachments.take(found).content == expected
    else:
        assert decode_data_url(found, 3000) == expected


@pytest.mark.parametrize(
    "start",
    [
        '{"url": " ',
        '{"url":"\\n',
        '{"image_url":"',
        '{"image_url" : "\\r\\n ',
    ],
)
def test_an_image_is_attached_after_blanks_and_without_an_object(start: str) -> None:
    body = take_apart(f'{start}data:image/png;base64,aGk="}}'.encode(), *range(90))
    (image,) = body.attachments.images.values()
    assert image.file().content == b"hi"


@pytest.mark.parametrize("key", ['"curl"', '"my_image_url"', '"image_url2"'])
def test_other_names_hold_no_images(key: str) -> None:
    body = take_apart(f'{{{key}: "data:image/png;base64,aGk="}}'.encode())
    assert not body.attachments.images


def test_the_bytes_that_come_at_the_end_are_counted() -> None:
    with Memory(1 << 20).share() as share:
        reader = BodyReader(LIMITS, share, PLACES)
        reader.feed(b'{"url":"data:;base64,')
        before = share.byte_count
        reader.feed(b'aG"}')
        assert share.byte_count == before + 1
        reader.finish()
        assert share.byte_count == before + 1 + len('"}')


def test_an_image_too_large_is_not_held() -> None:
    memory = Memory(1 << 20)
    with memory.share() as share:
        reader = BodyReader(LIMITS, share, PLACES)
        reader.feed(b'{"url":"data:image/png;base64,')
        for _ in range(100):
            reader.feed(base64.b64encode(bytes(300)))
            assert share.byte_count < 3500
        reader.feed(b'"}')
        (name,) = reader.finish().attachments.images
        attachments = reader.finish().attachments
    with pytest.raises(ImageTooLargeError, match="the limit is 3000"):
        attachments.take(name)


def test_text_is_bounded_and_an_image_is_none() -> None:
    body = json.dumps(image_url(data_url(bytes(2000)))).encode()
    text_byte_count = len(take_apart(body).text)
    assert text_byte_count < 200
    with pytest.raises(ContextLengthError, match="bytes of text or more; the limit is 100000"):
        take_apart(json.dumps(["x" * 100_000, data_url(bytes(2000))]).encode(), *range(0, 1000, 7))


@pytest.mark.parametrize("name", ["messages", "input"])
def test_too_many_images_are_refused(name: str) -> None:
    body = {"model": "m", name: [image_url(data_url(b"abc"))] * 5}
    with pytest.raises(InvalidArgumentError, match="5 images or more; the limit is 4") as caught:
        take_apart(json.dumps(body).encode())
    assert caught.value.field == name


@pytest.mark.parametrize("payload", ["AA\\x", "AA\\u00zz", "\\u12Z"])
def test_a_string_that_json_does_not_have_is_refused(payload: str) -> None:
    written = f'{{"url": "data:;base64,{payload}AAAAAAAA"}}'
    with pytest.raises(InvalidArgumentError, match="not valid JSON"):
        take_apart(written.encode(), *range(60))


@pytest.mark.parametrize("end", ["", "\\", "\\u00", "AA"])
def test_a_body_that_ends_within_an_image_is_no_json(end: str) -> None:
    body = take_apart(f'{{"url": "data:;base64,AAAA{end}'.encode())
    with pytest.raises(ValueError, match="Unterminated|Invalid"):
        json.loads(body.text)


def test_a_data_url_outside_of_the_images_is_text() -> None:
    value = {"metadata": image_url(data_url(b"abc")), "content": [image_url(data_url(b"abc"))]}
    body = take_apart(json.dumps(value).encode(), *range(400))
    (name,) = body.attachments.images
    assert json.loads(body.text) == value | {"content": [image_url(name)]}


def test_names_cannot_be_guessed() -> None:
    written = json.dumps(image_url(data_url(b"abc"))).encode()
    first, second = (next(iter(take_apart(written).attachments.images)) for _ in range(2))
    assert first != second


def test_all_that_comes_is_counted() -> None:
    memory = Memory(max_byte_count=10_000)
    body = json.dumps([image_url(data_url(bytes(2500)))] * 4).encode()
    take_apart(body, memory=memory)
    with pytest.raises(OverloadedError, match="the limit is 10000"):
        take_apart(b" " * FREE_BYTE_COUNT + body, memory=memory)
    with pytest.raises(OverloadedError, match="the limit is 10000"):
        take_apart(b" " * (FREE_BYTE_COUNT + 10_001), memory=memory)
    assert memory.held_byte_count == 0
