"""The key of a conversation stays while turns are added, and differs where caches must."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from gateway.dialects.chat import parse
from gateway.generation import GenerationRequest

Turn = tuple[str, Any]


def key(*turns: Turn, contents: Sequence[bytes] = (), **fields: Any) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    body = json.dumps({"messages": messages, **fields}).encode()
    (request,) = parse(body, strict_fields=False).generations
    found = [reference.source.url.encode() for reference in request.images]
    return request.conversation_key(contents or found)


def picture(name: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"http://pictures.test/{name}"}}


def about(*names: str, text: str = "what is this?") -> Turn:
    return "user", [*map(picture, names), {"type": "text", "text": text}]


ANSWER = ("assistant", "a cat")
TEXT = ("user", "hello")
SYSTEM = ("system", "be brief")


@pytest.mark.parametrize(
    "opening", [(about("cat"),), (about("cat", "dog"),), (TEXT,), (SYSTEM, TEXT)], ids=repr
)
@pytest.mark.parametrize("later", [TEXT, about("bird"), about("cat")], ids=repr)
def test_what_later_turns_add_changes_nothing(opening: tuple[Turn, ...], later: Turn) -> None:
    assert key(*opening) == key(*opening, ANSWER, later) == key(*opening, ANSWER, later, ANSWER)


def test_questions_about_one_picture_go_together() -> None:
    assert key(about("cat", text="what?")) == key(SYSTEM, about("cat", text="where?"))
    assert key(about("cat")) != key(about("dog"))
    assert key(about("cat", "dog")) == key(about("cat")) != key(about("dog", "cat"))


def test_a_salt_separates() -> None:
    keys = {key(about("cat")), key(about("cat"), cache_salt="a"), key(TEXT, cache_salt="a")}
    assert len(keys) == 3


def test_texts_are_told_apart_by_their_openings() -> None:
    texts = [(TEXT,), (SYSTEM, TEXT), (("system", "be verbose"), TEXT), (SYSTEM, ("user", "bye"))]
    assert len({key(*turns) for turns in texts}) == len(texts)
    assert key(SYSTEM, TEXT) == key(("developer", "be brief"), TEXT)


def test_a_key_is_hexadecimal_and_needs_no_user_turn() -> None:
    for turns in ((TEXT,), (about("cat"),), (SYSTEM,), (ANSWER,)):
        assert len(bytes.fromhex(key(*turns))) == 32


def test_the_file_counts_not_where_it_came_from() -> None:
    same = [b"the same file"]
    assert key(about("cat"), contents=same) == key(about("copy-of-cat"), contents=same)


def test_prompts_that_are_no_conversations_stand_for_themselves() -> None:
    prompts: list[dict[str, Any]] = [
        {"text": "hello"},
        {"text": "hello", "cache_salt": "a"},
        {"token_ids.ids": [1, 2]},
        {"token_ids.ids": [12]},
    ]
    requests = [GenerationRequest("", fields, str) for fields in prompts]
    assert len({request.conversation_key(()) for request in requests}) == len(prompts)


def guide_key(text: str = "Hi", **fields: Any) -> str:
    body = json.dumps({"messages": [{"role": "user", "content": text}], **fields}).encode()
    return parse(body, strict_fields=False).generations[0].guide_key


def test_the_key_of_a_guide_is_that_of_forms_and_tools_alone() -> None:
    tools = [{"function": {"name": "f", "parameters": {"required": ["a"]}}}]
    others = [{"function": {"name": "f", "parameters": {"required": ["b"]}}}]
    guides: list[dict[str, Any]] = [
        {"guided_regex": "a"},
        {"guided_regex": "b"},
        {"tools": tools},
        {"tools": others},
        {"tools": tools, "tool_choice": "required"},
        {"tools": tools, "guided_regex": "a"},
    ]
    assert len({guide_key(**guide) for guide in guides}) == len(guides)
    for guide in guides:
        assert guide_key(**guide) == guide_key("Bye", seed=1, **guide)
    assert guide_key() == guide_key(tools=tools, tool_choice="none") == ""
