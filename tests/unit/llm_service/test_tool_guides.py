"""What guides of tools let an output be: text and calls, and calls that fit their tools."""

from __future__ import annotations

import json
import random
import re
from types import SimpleNamespace
from typing import Any, cast

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from llm_service import wire_guides
from llm_service.call_reader import CallReader
from llm_service.detokenizer import Detokenizer
from llm_service.engines import guide_trial, guides
from llm_service.engines.guides import MAX_SOURCE_BYTE_COUNT, GuideCompiler, TokenMatcher
from llm_service.model import ModelInfo
from llm_service.pieces import ControlToken
from llm_service.sampling import Guide, ToolCallGuide, ToolCalls
from llm_service.tools.base import ToolCall, ToolDefinition
from llm_service.tools.create import tool_format
from protos.errors import InvalidArgumentError
from protos.internvl.v1 import llm_pb2
from tests.real_tokenizers import WITHOUT_CALL_MARKS, real_tokenizer
from tests.tool_schemas import arguments_schema
from tests.unit.llm_service.matchers import (
    VOCABULARY_SIZES,
    allowed,
    allowed_ids,
    end_token,
    follow,
    ids_by_text,
    new_matcher,
)

# By what the marks of calls are.
FAMILIES = {
    "tokens": "qwen2_5",
    "text": WITHOUT_CALL_MARKS,
    "special tokens": "internlm2_5",
}
EACH_FORMAT = pytest.mark.parametrize("marks", FAMILIES)
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = ToolDefinition("weather", "", json.dumps(CITY))
NAMED = ToolDefinition('a "\\name\x7f\n😀"', "", '{"additionalProperties": false}')
PARIS = ToolCall("weather", '{"city":"Paris"}')


def new_guide(
    marks: str,
    *tools: ToolDefinition,
    names: tuple[str, ...] = (),
    is_required: bool = False,
    is_single: bool = False,
    instead: Guide | None = None,
) -> ToolCallGuide:
    envelope = tool_format(real_tokenizer(FAMILIES[marks])).envelope
    callable_names = frozenset(names or (tool.name for tool in tools))
    calls = ToolCalls(envelope, tools, callable_names, is_single)
    return ToolCallGuide(calls, is_required, instead)


def begun(marks: str, guide: ToolCallGuide) -> TokenMatcher:
    return new_matcher(FAMILIES[marks], guide)


def write_call(marks: str, matcher: TokenMatcher, call: ToolCall, *, separated: bool) -> None:
    family = FAMILIES[marks]
    tokenizer = real_tokenizer(family)
    envelope = tool_format(tokenizer).envelope
    separator = [envelope.separator] if separated and envelope.separator else []
    text = ""
    for piece in (*separator, *envelope.pieces(call), ""):
        if isinstance(piece, str) and piece:
            text += piece
            continue
        follow(family, matcher, text)
        text = ""
        if isinstance(piece, ControlToken):
            token_id = tokenizer.special_id(piece.content)
            assert token_id in allowed_ids(family, matcher)
            matcher.accept(token_id)


def answer(
    marks: str, guide: ToolCallGuide, seed: int, most: int = 400
) -> tuple[str, list[ToolCall]]:
    """Returns what a random output says, and its calls; it ends where it may, as soon as it may."""
    family = FAMILIES[marks]
    tokenizer, choice = real_tokenizer(family), random.Random(seed)
    matcher = begun(marks, guide)
    reader = CallReader(guide, tokenizer, skip_special_tokens=True)
    detokenizer = Detokenizer(tokenizer, keep_first_space=True, symbols=reader.symbols)
    text, calls = "", dict[int, ToolCall]()
    for _ in range(most):
        ids = allowed_ids(family, matcher)
        token_id = end_token(family) if end_token(family) in ids else int(choice.choice(ids))
        matcher.accept(token_id)
        assert matcher.failure is None
        if token_id == end_token(family):
            return text + reader.finish(), list(calls.values())
        new, pieces = reader.push(detokenizer.push([token_id]))
        text += new
        for piece in pieces:
            known = calls.get(piece.call_index, ToolCall(piece.name, ""))
            calls[piece.call_index] = ToolCall(known.name, known.arguments + piece.arguments)
    raise AssertionError(f"no end after {most} tokens: {text!r} {calls}")


def fits(arguments: str, schema: dict[str, Any]) -> bool:
    return bool(Draft202012Validator(schema).is_valid(json.loads(arguments)))


@EACH_FORMAT
def test_a_required_call_fits_its_tool(marks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        guides, "_trials", lambda grammars: list(map(guide_trial.refusal, grammars))
    )
    called = set()
    for seed in range(6):
        schemas = {f"tool {i}": arguments_schema(2 * seed + i) for i in range(2)}
        tools = [ToolDefinition(name, "", json.dumps(each)) for name, each in schemas.items()]
        text, calls = answer(marks, new_guide(marks, *tools, is_required=True), seed)
        assert text == ""
        assert calls
        assert all(fits(call.arguments, schemas[call.name]) for call in calls)
        called |= {call.name for call in calls}
    assert len(called) == 2


@pytest.mark.slow
@EACH_FORMAT
def test_before_calls_every_token_is_allowed(marks: str) -> None:
    family = FAMILIES[marks]
    tokenizer = real_tokenizer(family)
    matcher = begun(marks, new_guide(marks, WEATHER))
    every_id = list(range(VOCABULARY_SIZES[family]))
    assert allowed(family, matcher) == every_id
    for token_id in tokenizer.encode("<ref>a</ref> 天"):
        matcher.accept(token_id)
        assert allowed(family, matcher) == every_id
    matcher.accept(tokenizer.special_id("<IMG_CONTEXT>"))
    assert allowed(family, matcher) == every_id
    for _ in range(2):
        write_call(marks, matcher, PARIS, separated=True)
        assert end_token(family) in allowed(family, matcher)
        assert len(allowed(family, matcher)) < 10


@EACH_FORMAT
def test_a_byte_of_no_text_is_no_mark(marks: str) -> None:
    family = FAMILIES[marks]
    matcher = begun(marks, new_guide(marks, WEATHER))
    for token_id in ids_by_text(family)[b"\xff"]:
        assert token_id in allowed_ids(family, matcher)
        matcher.accept(token_id)
        assert matcher.failure is None


def test_a_mark_that_is_text_is_followed_by_a_call_alone() -> None:
    marks, family = "text", FAMILIES["text"]
    tokenizer = real_tokenizer(family)
    matcher = begun(marks, new_guide(marks, WEATHER))
    for token_id in tokenizer.encode_plain("So <tool_call"):
        matcher.accept(token_id)
    barred = {*range(VOCABULARY_SIZES[family])} - {*allowed(family, matcher)}
    assert barred
    for token_id in barred:
        rest = tokenizer.token_bytes(token_id).removeprefix(b">")
        assert len(rest) < len(tokenizer.token_bytes(token_id))
        assert not b'\n{"name": '.startswith(rest)
    for token_id in tokenizer.encode_plain('>\n{"'):
        assert token_id in allowed(family, matcher)
        matcher.accept(token_id)
    follow(family, matcher, 'name": "weather", "arguments": {"city":"Rome"}}\n</tool_call>')
    assert end_token(family) in allowed(family, matcher)


@EACH_FORMAT
def test_a_single_call_is_the_end(marks: str) -> None:
    matcher = begun(marks, new_guide(marks, WEATHER, is_single=True))
    write_call(marks, matcher, PARIS, separated=False)
    assert allowed(FAMILIES[marks], matcher) == [end_token(FAMILIES[marks])]


@EACH_FORMAT
def test_only_named_tools_are_called(marks: str) -> None:
    guide = new_guide(marks, WEATHER, NAMED, names=(NAMED.name,), is_required=True)
    calls = [call for seed in range(3) for call in answer(marks, guide, seed)[1]]
    assert {call.name for call in calls} == {NAMED.name}
    assert all(json.loads(call.arguments) == {} for call in calls)


@EACH_FORMAT
def test_beside_a_guide_an_output_is_the_ones_or_the_others(marks: str) -> None:
    family = FAMILIES[marks]
    guide = new_guide(marks, WEATHER, instead=Guide("regex", "<[a-z]>|<tool_call>[a-z]*"))
    matcher = begun(marks, guide)
    follow(family, matcher, "<b>")
    assert allowed(family, matcher) == [end_token(family)]
    matcher = begun(marks, guide)
    write_call(marks, matcher, PARIS, separated=False)
    assert end_token(family) in allowed(family, matcher)
    outputs = [answer(marks, guide, seed) for seed in range(8)]
    for text, calls in outputs:
        assert calls or text
        assert all(json.loads(call.arguments).keys() == {"city"} for call in calls)


def test_what_a_guide_lets_be_said_does_not_begin_as_a_call() -> None:
    guide = new_guide("text", WEATHER, instead=Guide("regex", "<tool_call>[a-z]*"))
    matcher, family = begun("text", guide), FAMILIES["text"]
    follow(family, matcher, "<tool_call")
    rests = {real_tokenizer(family).token_bytes(i)[1:] for i in allowed(family, matcher)}
    assert rests
    assert all(b'\n{"name": "weather'.startswith(rest) for rest in rests)
    follow(family, matcher, '>\n{"name": "weather", "arguments": {"city":"Rome"}}')


def refusal(*tools: ToolDefinition, **options: Any) -> InvalidArgumentError:
    with pytest.raises(InvalidArgumentError) as info:
        begun("text", new_guide("text", *tools, **options))
    return info.value


def strict(name: str, schema: dict[str, Any]) -> ToolDefinition:
    return ToolDefinition(name, "", json.dumps(schema), is_strict=True)


def test_a_strict_schema_that_cannot_be_enforced_is_refused_by_its_place() -> None:
    bad = {"properties": {"list": {"type": "array", "uniqueItems": True}}}
    error = refusal(WEATHER, strict("bad", bad))
    assert error.field == "chat.tools[1].parameters.properties.list.uniqueItems"
    assert "the guide of the tools cannot be followed: of bad, 'uniqueItems'" in error.message
    begun("text", new_guide("text", WEATHER, strict("bad", bad), names=("weather",)))


@pytest.mark.parametrize(
    ("schema", "fitting", "other"),
    [
        (
            {"properties": {"n": {"type": "integer", "not": {"const": 3}}}, "required": ["n"]},
            '{"n":3}',
            '{"n":"',
        ),
        # Nothing of it can be enforced.
        ({"properties": {"n": {"type": "integer", "enum": ["a"]}}, "required": ["n"]}, "{}", "["),
    ],
)
def test_of_other_schemas_is_enforced_what_can_be(
    schema: dict[str, Any], fitting: str, other: str
) -> None:
    tool = ToolDefinition("loose", "", json.dumps(schema))
    matcher = begun("text", new_guide("text", WEATHER, tool, is_required=True))
    write_call("text", matcher, ToolCall("loose", fitting), separated=False)
    matcher = begun("text", new_guide("text", WEATHER, tool, is_required=True))
    with pytest.raises(StopIteration):
        write_call("text", matcher, ToolCall("loose", other), separated=False)


@pytest.mark.parametrize("is_strict", [True, False])
@pytest.mark.parametrize("number", [2**63, 2**64, -(2**63) - 1, 10**30])
def test_a_schema_may_hold_any_whole_number(number: int, is_strict: bool) -> None:
    schema = {"properties": {"n": {"enum": [number, 3]}}, "required": ["n"]}
    tool = ToolDefinition("large", "", json.dumps(schema), is_strict)
    matcher = begun("text", new_guide("text", tool, is_required=True))
    write_call("text", matcher, ToolCall("large", '{"n":3}'), separated=False)


def test_what_is_json_to_python_alone_is_refused() -> None:
    error = refusal(WEATHER, ToolDefinition("odd", "", '{"title": "\\ud800"}'))
    assert error.field == "chat.tools"
    assert "cannot be followed" in error.message


@pytest.mark.slow
def test_tools_have_the_bounds_of_any_guide() -> None:
    large = ToolDefinition("large", "", json.dumps({"title": "x" * MAX_SOURCE_BYTE_COUNT}))
    error = refusal(WEATHER, large)
    assert error.field == "chat.tools"
    assert f"at most {MAX_SOURCE_BYTE_COUNT}" in error.message


def test_a_tool_that_breaks_a_limit_is_named_with_it() -> None:
    costly = {"properties": {"n": {"type": "integer", "multipleOf": 999983}}}
    error = refusal(WEATHER, ToolDefinition("costly", "", json.dumps(costly)), NAMED)
    assert error.field == "chat.tools[1].parameters"
    assert re.fullmatch(
        r"the guide of the tools cannot be followed: of costly, it takes 1\.\d s of CPU time"
        r" or more to compile; all tools together may take 2 s",
        error.message,
    )
    links = {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(1400)}
    nested = {"properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": {**links, "d1400": {}}}
    deep = ToolDefinition("deep", "", json.dumps(nested))
    error = refusal(NAMED, WEATHER, deep, names=("weather", "deep"))
    assert error.field == "chat.tools[2].parameters"
    assert error.message.endswith("of deep, it takes more than 4 MiB of stack to compile")


def test_tools_that_break_a_limit_together_are_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def trials(grammars: list[str]) -> list[str]:
        raise guides.TooCostlyError(guides.MEMORY, len(grammars) - 1)

    monkeypatch.setattr(guides, "_trials", trials)
    error = refusal(WEATHER, strict("together", {}))
    assert error.field == "chat.tools"
    assert error.message.endswith("all tools together take more than 1024 MiB of memory to compile")


def test_names_may_hold_any_character() -> None:
    tool = ToolDefinition("a\x7f\u2028😀", "", '{"additionalProperties": false}')
    matcher = begun("text", new_guide("text", tool, is_required=True))
    write_call("text", matcher, ToolCall(tool.name, "{}"), separated=False)


def test_of_too_many_schemas_those_that_need_not_be_are_not_enforced() -> None:
    dates = {f"d{i}": {"type": "string", "format": "date-time"} for i in range(8)}
    schema = json.dumps({"properties": dates})
    tools = [ToolDefinition(f"tool {i}", "", schema) for i in range(100)]
    city = ToolDefinition("weather", "", json.dumps(CITY), is_strict=True)
    guide = new_guide("text", city, *tools, is_required=True)
    loose = ToolCall("tool 99", '{"d0":1}')
    write_call("text", begun("text", guide), loose, separated=False)
    matcher, wrong = begun("text", guide), ToolCall("weather", '{"city":1}')
    with pytest.raises(StopIteration):
        write_call("text", matcher, wrong, separated=False)


def test_tools_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = (WEATHER, strict("once", {}))
    begun("text", new_guide("text", *tools))
    monkeypatch.setattr(GuideCompiler, "_compile", None)
    begun("text", new_guide("text", *tools, is_required=True))


def test_what_is_kept_of_tools_is_what_guides_need() -> None:
    tools = [
        llm_pb2.ToolDefinition(name=name, description="x" * 99, parameters=json.dumps(CITY))
        for name in ("a", "b")
    ]
    guided = llm_pb2.GuidedDecoding()
    guided.tool_calls.choice = llm_pb2.TOOL_CHOICE_AUTO
    guided.tool_calls.names.append("b")
    info = cast(ModelInfo, SimpleNamespace(tool_format=tool_format(real_tokenizer("qwen2_5"))))
    guide = wire_guides.guide(guided, tools, info)
    assert isinstance(guide, ToolCallGuide)
    assert guide.calls.tools == (ToolDefinition("a"), ToolDefinition("b", "", json.dumps(CITY)))
    assert list(guide.calls.callable_tools) == [1]


def test_a_grammar_cannot_name_the_marks_of_calls() -> None:
    begun("special tokens", new_guide("special tokens", WEATHER, is_required=True))
    with pytest.raises(InvalidArgumentError, match="special token") as info:
        new_matcher("internlm2_5", Guide("grammar", 'start: <|plugin|> "a"'))
    assert info.value.field == "guided.grammar"


DIGIT = {"enum": [1, 2]}


def new_call_of(schema: dict[str, Any]) -> ToolCallGuide:
    tool = ToolDefinition("set", "", json.dumps(schema))
    return new_guide("tokens", tool, is_required=True, is_single=True)


@pytest.mark.parametrize(
    "schema", [{"properties": {"a": DIGIT}, "required": ["a"]}, {"properties": {"a": DIGIT}}, {}]
)
def test_arguments_have_no_properties_but_those_that_are_listed(schema: dict[str, Any]) -> None:
    guide = new_call_of({"properties": {}} | schema)
    for seed in range(5):
        _, (call,) = answer("tokens", guide, seed)
        arguments = json.loads(call.arguments)
        assert {*schema.get("required", ())} <= arguments.keys() <= {*schema.get("properties", ())}


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        ({"properties": {"a": DIGIT}, "required": ["a", "b"]}, '{"a":1,"b":"x"}'),
        ({"properties": {"a": DIGIT}, "minProperties": 2}, '{"a":1,"b":"x"}'),
        ({"properties": {"a": DIGIT}, "additionalProperties": DIGIT}, '{"a":1,"b":2}'),
        ({"type": "object"}, '{"b":"x"}'),
    ],
)
def test_arguments_that_may_have_others_have_them(schema: dict[str, Any], arguments: str) -> None:
    matcher = begun("tokens", new_call_of(schema))
    write_call("tokens", matcher, ToolCall("set", arguments), separated=False)
    assert matcher.failure is None
