"""What an answer is held to: refused before a picture is fetched, and given in any of its forms."""

from __future__ import annotations

from typing import Any

import pytest

from protos.errors import EngineDeadError, InvalidArgumentError, OverloadedError, ServiceError
from protos.process.settings import MIB
from tests.fakes import ScriptedLLM, stack
from tests.integration.picture_server import LOCAL, picture_server

FORM: dict[str, Any] = {"structured_outputs": {"regex": "(("}}
TOOLS: dict[str, Any] = {"tools": [{"function": {"name": "f"}}, {"function": {"name": "g"}}]}


def showing(url: str) -> list[dict[str, Any]]:
    picture = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [{"type": "text", "text": "?"}, picture]}]


@pytest.mark.parametrize(
    ("fields", "field", "param"),
    [
        (FORM, "guided.regex", "structured_outputs.regex"),
        (TOOLS, "guided.tool_calls", "tools"),
        (
            TOOLS,
            "chat.tools[1].parameters.properties.x",
            "tools[1].function.parameters.properties.x",
        ),
        (TOOLS, "chat.tools", "tools"),
        (
            {"functions": [{"name": "f"}]},
            "chat.tools[0].parameters.not",
            "functions[0].parameters.not",
        ),
    ],
)
async def test_a_bad_guide_is_refused_before_a_picture_is_fetched(
    fields: dict[str, Any], field: str, param: str
) -> None:
    llm = ScriptedLLM(guide_failure=InvalidArgumentError("a sentence", field=field))
    async with (
        picture_server() as pictures,
        stack(llm=llm, allowed_private_hosts=LOCAL) as gateway,
    ):
        status, answer = await gateway.chat(messages=showing(pictures.url()), **fields)
        assert (status, answer["error"]["param"]) == (400, param)
        assert answer["error"]["message"] == "a sentence"
        assert not pictures.requests
        assert not gateway.vision.requests
        assert not llm.starts
        llm.guide_failure = None
        status, _ = await gateway.chat(messages=showing(pictures.url()), **fields)
        assert status == 200
        assert len(pictures.requests) == len(gateway.vision.requests) == len(llm.starts) == 1
    assert len(llm.guides) == 2


async def test_what_does_not_fit_into_a_message_is_refused_before_a_picture_is_fetched() -> None:
    tools = [{"function": {"name": f"f{i}", "description": "d" * 100_000}} for i in range(50)]
    settings: dict[str, Any] = {"allowed_private_hosts": LOCAL, "max_text_byte_count": 16 * MIB}
    async with picture_server() as pictures, stack(**settings) as gateway:
        status, answer = await gateway.chat(messages=showing(pictures.url()), tools=tools)
    assert (status, answer["error"]["param"]) == (400, "tools")
    assert not pictures.requests


async def test_the_check_has_all_that_the_generation_will() -> None:
    async with picture_server() as pictures, stack(allowed_private_hosts=LOCAL) as gateway:
        await gateway.chat(messages=showing(pictures.url()), **FORM, **TOOLS)
    (start,), (check,) = gateway.llm.starts, gateway.llm.guides
    assert check.guided == start.guided
    assert list(check.tools) == list(start.chat.tools)
    assert len(check.tools) == 2


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        ([{"type": "text", "text": "Hi"}], FORM),
        (showing("data:image/png;base64,aGk=")[0]["content"], {}),
    ],
    ids=["no picture", "no guide"],
)
async def test_nothing_is_asked_where_nothing_would_be_in_vain(
    content: list[dict[str, Any]], fields: dict[str, Any]
) -> None:
    async with stack() as gateway:
        status, _ = await gateway.chat(messages=[{"role": "user", "content": content}], **fields)
    assert status == 200
    assert not gateway.llm.guides


@pytest.mark.parametrize(
    "failure", [OverloadedError("busy"), EngineDeadError("x"), ServiceError("unknown")], ids=repr
)
async def test_a_check_that_fails_otherwise_stops_nobody(failure: ServiceError) -> None:
    """An older service has no such call; whatever is wrong with a replica, another may do."""
    llm = ScriptedLLM(guide_failure=failure)
    async with picture_server() as pictures, stack(llm=llm, allowed_private_hosts=LOCAL) as gateway:
        status, _ = await gateway.chat(messages=showing(pictures.url()), **FORM)
    assert status == 200
    assert llm.guides


@pytest.mark.parametrize(
    ("fields", "guide"),
    [
        ({"guided_json": {"type": "null"}}, {"json_schema": '{"type": "null"}'}),
        ({"guided_json": '{"type": "null"}'}, {"json_schema": '{"type": "null"}'}),
        ({"guided_regex": "a+"}, {"regex": "a+"}),
        ({"guided_choice": ["1+1", "yes"]}, {"regex": r"1\+1|yes"}),
        ({"guided_grammar": "start: /a/"}, {"grammar": "start: /a/"}),
        ({"structured_outputs": {"choice": ["a", ""]}}, {"regex": "a|"}),
        ({"structured_outputs": {"json_object": True}}, {"json_object": {}}),
        ({"guided_regex": "a+", "response_format": {"type": "text"}}, {"regex": "a+"}),
    ],
    ids=str,
)
async def test_forms_of_other_servers_go_over(
    fields: dict[str, Any], guide: dict[str, Any]
) -> None:
    async with stack() as gateway:
        status, answer = await gateway.chat(guided_decoding_backend="xgrammar", **fields)
    assert status == 200, answer
    (start,) = gateway.llm.starts
    set_fields = {field.name: value for field, value in start.guided.ListFields()}
    assert set_fields.keys() == guide.keys()
    for name, value in guide.items():
        assert name == "json_object" or set_fields[name] == value


@pytest.mark.parametrize(
    ("field", "fields", "param"),
    [
        ("guided.json_schema.type", {"guided_json": {"type": 5}}, "guided_json.type"),
        ("guided.regex", {"guided_regex": "(("}, "guided_regex"),
        ("guided.regex", {"guided_choice": ["a"]}, "guided_choice"),
        (
            "guided.regex",
            {"structured_outputs": {"choice": ["a"]}},
            "structured_outputs.choice",
        ),
        ("guided.grammar", {"guided_grammar": "("}, "guided_grammar"),
        (
            "guided.json_object",
            {"structured_outputs": {"json_object": True}},
            "structured_outputs.json_object",
        ),
    ],
)
async def test_an_error_names_the_form_as_the_client_does(
    field: str, fields: dict[str, Any], param: str
) -> None:
    llm = ScriptedLLM(failures=[InvalidArgumentError("a sentence", field=field)])
    async with stack(llm=llm) as gateway:
        status, answer = await gateway.chat(**fields)
    assert (status, answer["error"]["param"]) == (400, param)


async def test_an_ignored_format_is_named_in_the_header() -> None:
    body = {
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": [{"function": {"name": "f", "parameters": {"items": {"format": "uint8"}}}}],
    }
    async with (
        stack() as gateway,
        gateway.http.post("/v1/chat/completions", json=body) as response,
    ):
        assert response.status == 200
        ignored = response.headers["x-internvl-ignored"]
    assert ignored == "tools[0].function.parameters.items.format"
