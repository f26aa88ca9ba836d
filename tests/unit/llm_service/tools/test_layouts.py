"""Definitions, calls and responses in a prompt: as the language models' own templates have them."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llm_service.conversation import Message, Role
from llm_service.pieces import ImagePart
from llm_service.prompt import ChatPrompt, PromptLayout, prompt_layout
from llm_service.templates import INTERNVL2_5, TEMPLATES, Template
from llm_service.tools.base import ToolCall, ToolDefinition
from llm_service.tools.create import tool_format
from llm_service.tools.hermes import HermesFormat
from llm_service.tools.plugin import PluginFormat
from tests.real_tokenizers import FOLDER, WITHOUT_CALL_MARKS, has_token, real_tokenizer

SIZE = 151674
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = ToolDefinition("weather", "Tells 天气.", json.dumps(CITY), is_strict=True)
CLOCK = ToolDefinition("clock")
PARIS = ToolCall("weather", '{"city": "Paris"}')
NOW = ToolCall("clock", "")
EACH_TEMPLATE = pytest.mark.parametrize(
    "template", TEMPLATES.values(), ids=lambda template: template.name
)


def laid_out(
    family: str, template: Template, messages: list[Message], *tools: ToolDefinition
) -> PromptLayout:
    source = ChatPrompt(messages, tools=tools)
    return prompt_layout(real_tokenizer(family), template, source, SIZE)


def message(role: Role, *parts: str | ImagePart, calls: tuple[ToolCall, ...] = ()) -> Message:
    return Message(role, parts, calls)


@cache
def published() -> Any:
    """Qwen2.5's tokenizer with its own chat template."""
    return AutoTokenizer.from_pretrained(FOLDER / "qwen2_5")


def as_published(messages: list[Message], tools: tuple[ToolDefinition, ...]) -> list[int]:
    conversation = [_openai(message) for message in messages]
    if not messages or messages[0].role is not Role.SYSTEM:
        conversation.insert(0, {"role": "system", "content": INTERNVL2_5.system_text})
    documents = [{"type": "function", "function": tool.document()} for tool in tools]
    ids: list[int] = published().apply_chat_template(
        conversation, tools=documents or None, add_generation_prompt=True, return_dict=False
    )
    return ids


def _openai(message: Message) -> dict[str, Any]:
    calls = [
        {"type": "function", "function": {"name": c.name, "arguments": json.loads(c.arguments)}}
        for c in message.tool_calls
    ]
    asked = {"tool_calls": calls} if calls else {}
    return {"role": message.role.value, "content": message.text, **asked}


TEXTS = st.text("aé天 <>\n{}", min_size=1, max_size=8)
NAMES = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_-]{0,20}", fullmatch=True)
SCHEMAS = st.dictionaries(NAMES, st.sampled_from([{"type": "string"}, {"enum": ["é", 1]}])).map(
    lambda properties: json.dumps({"type": "object", "properties": properties})
)
TOOLS = st.lists(
    st.builds(ToolDefinition, NAMES, TEXTS, SCHEMAS), max_size=3, unique_by=lambda tool: tool.name
).map(tuple)
CALLS = st.builds(
    ToolCall, NAMES, st.dictionaries(NAMES, st.integers() | TEXTS).map(lambda a: _json(a))
)
TURNS = st.one_of(
    st.builds(Message, st.just(Role.USER), st.tuples(TEXTS)),
    st.builds(Message, st.just(Role.TOOL), st.tuples(TEXTS)),
    st.builds(Message, st.just(Role.ASSISTANT), st.tuples(TEXTS)),
    st.builds(
        Message, st.just(Role.ASSISTANT), st.sampled_from([(), ("Well.",)]), st.tuples(CALLS)
    ),
    st.builds(Message, st.just(Role.ASSISTANT), st.just(("Two.",)), st.tuples(CALLS, CALLS)),
)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@settings(max_examples=100, deadline=None)
@given(st.lists(TURNS, max_size=5), TOOLS, st.booleans())
def test_a_prompt_with_tools_is_qwens_own(
    turns: list[Message], tools: tuple[ToolDefinition, ...], has_system: bool
) -> None:
    first = [message(Role.SYSTEM, "Be brief.")] if has_system else []
    messages = [*first, message(Role.USER, "Hi"), *turns, message(Role.USER, "So?")]
    layout = laid_out("qwen2_5", INTERNVL2_5, messages, *tools)
    assert layout.token_ids([], SIZE) == as_published(messages, tools)


def written(family: str, layout: PromptLayout) -> str:
    """Returns a prompt's text with the names of its control tokens; an image is "[image]"."""
    tokenizer = real_tokenizer(family)
    segments = (b"".join(map(tokenizer.token_bytes, ids)).decode() for ids in layout.segments)
    return "[image]".join(segments).removeprefix("<s>")


@EACH_TEMPLATE
def test_internlm2_has_tools_in_a_turn_of_their_own(template: Template) -> None:
    messages = [
        message(Role.SYSTEM, "Be brief."),
        message(Role.USER, "Warm there?", ImagePart()),
        message(Role.ASSISTANT, "I look.", calls=(PARIS, NOW)),
        message(Role.TOOL, "20 °C"),
        message(Role.TOOL, ""),
        message(Role.USER, "Thanks"),
    ]
    layout = laid_out("internlm2_5", template, messages, WEATHER, CLOCK)
    start, end = "<|action_start|><|plugin|>\n", "}<|action_end|>"
    turn_end = f"<|im_end|>{template.turn_separator}"
    assert written("internlm2_5", layout) == (
        f"<|im_start|>system\nBe brief.{turn_end}"
        '<|im_start|>system name=<|plugin|>\n[{"name": "weather", "description": "Tells 天气.",'
        f' "parameters": {json.dumps(CITY)}}}, {{"name": "clock"}}]{turn_end}'
        f"<|im_start|>user\n<img>[image]</img>\nWarm there?{turn_end}"
        f'<|im_start|>assistant\nI look.{start}{{"name": "weather", "parameters": {{"city":'
        f' "Paris"}}{end}{start}{{"name": "clock", "parameters": {{}}{end}{turn_end}'
        f"<|im_start|>environment name=<|plugin|>\n20 °C{turn_end}"
        f"<|im_start|>environment name=<|plugin|>\n{turn_end}"
        f"<|im_start|>user\nThanks{turn_end}<|im_start|>assistant\n"
    )
    ids = layout.token_ids([0], SIZE)
    marks = PluginFormat.envelope.control_tokens
    counts = [ids.count(real_tokenizer("internlm2_5").special_id(mark)) for mark in marks]
    assert dict(zip(marks, counts, strict=True)) == {
        "<|action_start|>": 2,
        "<|plugin|>": 5,
        "<|action_end|>": 2,
    }


@EACH_TEMPLATE
def test_without_a_system_message_tools_follow_the_templates_own(template: Template) -> None:
    messages = [message(Role.USER, "Hi")]
    plugin = written("internlm2_5", laid_out("internlm2_5", template, messages, CLOCK))
    assert plugin.startswith(
        f"<|im_start|>system\n{template.system_text}<|im_end|>{template.turn_separator}"
        "<|im_start|>system name=<|plugin|>\n"
    )
    for family in ("qwen2_5", WITHOUT_CALL_MARKS):
        hermes = written(family, laid_out(family, template, messages, CLOCK))
        assert hermes.startswith(f"<|im_start|>system\n{template.system_text}\n\n# Tools\n\n")


@EACH_TEMPLATE
def test_what_tools_say_is_text(template: Template) -> None:
    """Neither a definition nor what a tool returned can begin a turn, or a call."""
    marks = "<|im_end|><|im_start|><|plugin|><|action_start|>"
    tool = ToolDefinition("a", marks, json.dumps({"title": marks}))
    messages = [message(Role.USER, "Hi"), message(Role.TOOL, marks)]
    for family in ("internlm2_5", WITHOUT_CALL_MARKS, "qwen2_5"):
        layout = laid_out(family, template, messages, tool)
        text, ids = written(family, layout), layout.token_ids([], SIZE)
        assert text.count(marks) == 3
        for mark in re.findall(r"<\|.*?\|>", marks):
            if has_token(real_tokenizer(family), mark):
                count = ids.count(real_tokenizer(family).special_id(mark))
                assert count == text.count(mark) - 3


@pytest.mark.parametrize(
    ("family", "expected", "marks"),
    [
        ("internlm2_5", PluginFormat, ["<|action_start|>", "<|plugin|>", "<|action_end|>"]),
        ("qwen2_5", HermesFormat, ["<tool_call>", "</tool_call>"]),
        (WITHOUT_CALL_MARKS, HermesFormat, []),
    ],
)
def test_the_format_is_that_of_the_tokenizers_tokens(
    family: str, expected: type, marks: list[str]
) -> None:
    found = tool_format(real_tokenizer(family))
    assert type(found) is expected
    assert [*found.envelope.control_tokens] == marks
