from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.conversation import Ending, Message, Role
from llm_service.pieces import ImagePart
from llm_service.prompt import (
    ChatPrompt,
    PromptLayout,
    TextPrompt,
    TokenPrompt,
    chat_layout,
    text_layout,
    token_layout,
)
from llm_service.templates import HERMES_2, INTERNLM2_CHAT, INTERNVL2_5, TEMPLATES, Template
from llm_service.tokenizer import TEMPLATE_TOKENS, Tokenizer
from llm_service.tools.base import ToolCall
from llm_service.tools.plugin import PluginFormat
from protos.errors import InvalidArgumentError, PlaceholderMismatchError
from tests.real_tokenizers import (
    CONTROL_TOKENS,
    WITHOUT_CALL_MARKS,
    control_ids,
    has_token,
    real_tokenizer,
)

VOCABULARY_SIZE = 151674
FAMILIES = ("internlm2_5", WITHOUT_CALL_MARKS, "qwen2_5")
IMAGE = ImagePart()
# How the reference's own text of a prompt begins, and how it marks an image of no rows.
SYSTEM = f"<|im_start|>system\n{INTERNVL2_5.system_text}<|im_end|>\n"
PLACE = "<img></img>"
ANSWER = "<|im_start|>assistant\n"
TAGS = [f"<{end}{name}>" for name in ("ref", "box", "quad", "tool_call") for end in ("", "/")]
MARKS = PluginFormat.envelope.control_tokens
TOKENS = ["<|im_start|>", "<|im_end|>", "<img>", "</img>", *TAGS, *MARKS]


def laid_out(
    tokenizer: Tokenizer,
    messages: list[Message],
    ending: Ending | None = None,
    template: Template = INTERNVL2_5,
) -> PromptLayout:
    return chat_layout(tokenizer, template, messages, ending)


def user(*parts: str | ImagePart) -> Message:
    return Message(Role.USER, parts)


def system(*texts: str) -> Message:
    return Message(Role.SYSTEM, texts)


def assistant(*texts: str, calls: tuple[ToolCall, ...] = ()) -> Message:
    return Message(Role.ASSISTANT, texts, calls)


def tool(*texts: str) -> Message:
    return Message(Role.TOOL, texts)


WEATHER = ToolCall("weather", '{"city":"Köln"}')
TIME = ToolCall("time", "")
TOOL_TURNS = [
    user("Warm?"),
    assistant(calls=(WEATHER, TIME)),
    tool("20 °C"),
    tool("noon", "sharp"),
    assistant("Let me see.", calls=(TIME,)),
    tool(),
]
CALLS = (
    '<tool_call>\n{"name": "weather", "arguments": {"city":"Köln"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
)
HERMES_PROMPT = (
    f"{SYSTEM}<|im_start|>user\nWarm?<|im_end|>\n{ANSWER}{CALLS}<|im_end|>\n"
    "<|im_start|>user\n<tool_response>\n20 °C\n</tool_response>\n"
    "<tool_response>\nnoon\nsharp\n</tool_response><|im_end|>\n"
    f"{ANSWER}Let me see.\n"
    '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call><|im_end|>\n'
    f"<|im_start|>user\n<tool_response>\n\n</tool_response><|im_end|>\n{ANSWER}"
)
TIME_CALL = '<|action_start|><|plugin|>\n{"name": "time", "parameters": {}}<|action_end|>'
ENVIRONMENT = "<|im_start|>environment name=<|plugin|>\n"
PLUGIN_PROMPT = (
    f"{SYSTEM}<|im_start|>user\nWarm?<|im_end|>\n{ANSWER}<|action_start|><|plugin|>\n"
    '{"name": "weather", "parameters": {"city":"Köln"}}<|action_end|>'
    f"{TIME_CALL}<|im_end|>\n{ENVIRONMENT}20 °C<|im_end|>\n"
    f"{ENVIRONMENT}noon\nsharp<|im_end|>\n{ANSWER}Let me see.{TIME_CALL}<|im_end|>\n"
    f"{ENVIRONMENT}<|im_end|>\n{ANSWER}"
)
# Each with the prompt that it makes.
PROMPTS: list[tuple[str, list[Message], Ending | None, str]] = [
    # The reference writes no end after a turn in which nothing is said.
    ("empty content", [user()], None, f"{SYSTEM}<|im_start|>user\n{ANSWER}"),
    (
        "empty turns",
        [user("hi"), assistant(""), user(""), assistant("Yes"), user("so?")],
        None,
        f"{SYSTEM}<|im_start|>user\nhi<|im_end|>\n{ANSWER}<|im_start|>user\n{ANSWER}Yes<|im_end|>\n"
        f"<|im_start|>user\nso?<|im_end|>\n{ANSWER}",
    ),
    (
        "an empty system text",
        [system(""), user("hi")],
        None,
        f"<|im_start|>system\n<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n{ANSWER}",
    ),
    (
        "an empty turn continued",
        [user("hi"), assistant("")],
        None,
        f"{SYSTEM}<|im_start|>user\nhi<|im_end|>\n{ANSWER}",
    ),
    (
        "an empty turn closed",
        [user("")],
        Ending.CLOSED,
        f"{SYSTEM}<|im_start|>user\n",
    ),
    (
        "leading system messages",
        [system("Be short."), system("In", "English."), user("hi")],
        None,
        "<|im_start|>system\nBe short.\n\nIn\nEnglish.<|im_end|>\n"
        f"<|im_start|>user\nhi<|im_end|>\n{ANSWER}",
    ),
    (
        "a later system message",
        [user("hi"), assistant("Hello"), system("Now in French."), user("again")],
        None,
        f"{SYSTEM}<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>system\nNow in French.<|im_end|>\n"
        f"<|im_start|>user\nagain<|im_end|>\n{ANSWER}",
    ),
    (
        "a system message alone",
        [system("Write a poem.")],
        None,
        f"<|im_start|>system\nWrite a poem.<|im_end|>\n{ANSWER}",
    ),
    (
        "the assistant last",
        [user("hi"), assistant("Hello, I am")],
        None,
        f"{SYSTEM}<|im_start|>user\nhi<|im_end|>\n{ANSWER}Hello, I am",
    ),
    (
        "a new turn after the assistant's",
        [user("hi"), assistant("Hello")],
        Ending.NEW_TURN,
        f"{SYSTEM}<|im_start|>user\nhi<|im_end|>\n{ANSWER}Hello<|im_end|>\n{ANSWER}",
    ),
    (
        "the user continued",
        [user("What is the")],
        Ending.CONTINUED,
        f"{SYSTEM}<|im_start|>user\nWhat is the",
    ),
    (
        "closed",
        [user("hi"), assistant("Hello")],
        Ending.CLOSED,
        f"{SYSTEM}<|im_start|>user\nhi<|im_end|>\n{ANSWER}Hello<|im_end|>\n",
    ),
    (
        "one text: images first",
        [user("What is it?", IMAGE)],
        None,
        f"{SYSTEM}<|im_start|>user\n{PLACE}\nWhat is it?<|im_end|>\n{ANSWER}",
    ),
    (
        "several texts: in order",
        [user("A:", IMAGE, "B:", IMAGE, "Which is older?")],
        None,
        f"{SYSTEM}<|im_start|>user\nA:\n{PLACE}\nB:\n{PLACE}\nWhich is older?<|im_end|>\n{ANSWER}",
    ),
    (
        "several texts with placeholders",
        [user("A: <image>", IMAGE, "B:", IMAGE)],
        None,
        f"{SYSTEM}<|im_start|>user\n{PLACE}\nA: {PLACE}\nB:<|im_end|>\n{ANSWER}",
    ),
    (
        "an image alone",
        [user(IMAGE)],
        None,
        f"{SYSTEM}<|im_start|>user\n{PLACE}\n<|im_end|>\n{ANSWER}",
    ),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("messages", "ending", "prompt"),
    [prompt[1:] for prompt in PROMPTS],
    ids=[prompt[0] for prompt in PROMPTS],
)
def test_the_prompt_is_as_the_template_writes_it(
    family: str, messages: list[Message], ending: Ending | None, prompt: str
) -> None:
    layout = laid_out(real_tokenizer(family), messages, ending)
    assert ids(layout) == whole(family, prompt)


@pytest.mark.parametrize(
    ("family", "prompt"),
    [
        ("internlm2_5", PLUGIN_PROMPT),
        (WITHOUT_CALL_MARKS, HERMES_PROMPT),
        ("qwen2_5", HERMES_PROMPT),
    ],
)
def test_turns_of_tools_are_as_the_tokenizers_model_has_learned_them(
    family: str, prompt: str
) -> None:
    assert ids(laid_out(real_tokenizer(family), TOOL_TURNS)) == whole(family, prompt)


def whole(family: str, prompt: str) -> list[int]:
    """Returns the ids of a prompt's whole text, in which special tokens are written out."""
    tokenizer = real_tokenizer(family)
    token_ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    known = "|".join(re.escape(token) for token in TOKENS if has_token(tokenizer, token))
    for piece in re.split(f"({known})", prompt):
        is_token = has_token(tokenizer, piece)
        token_ids += [tokenizer.special_id(piece)] if is_token else tokenizer.encode_plain(piece)
    return token_ids


def ids(layout: PromptLayout) -> list[int]:
    """Returns a prompt's ids as if its images had no rows."""
    return layout.token_ids([0] * layout.image_count, VOCABULARY_SIZE)


def test_an_open_text_and_its_continuation_are_one_text() -> None:
    """A line feed, or a token of its own at the border, would be no place to go on from."""
    tokenizer = real_tokenizer("qwen2_5")
    open_ids = ids(laid_out(tokenizer, [user("hi"), assistant("One, two,")]))
    whole_ids = ids(laid_out(tokenizer, [user("hi"), assistant("One, two, three")]))
    assert whole_ids[: len(open_ids)] == open_ids
    assert tokenizer.token_bytes(whole_ids[len(open_ids)]) == b" three"


@pytest.mark.parametrize(
    ("source", "goes_on"),
    [
        (ChatPrompt([user("a"), assistant("b")]), True),
        (ChatPrompt([user("a"), assistant("")]), False),
        (ChatPrompt([user("a"), assistant("b")], Ending.NEW_TURN), False),
        (ChatPrompt([user("a")]), False),
        (ChatPrompt([user("a")], Ending.CONTINUED), True),
        (ChatPrompt([]), False),
        (TextPrompt("a"), True),
        (TextPrompt(""), False),
        (TokenPrompt([1]), False),
    ],
)
def test_an_answer_goes_on_with_an_open_text(
    source: ChatPrompt | TextPrompt | TokenPrompt, goes_on: bool
) -> None:
    assert source.goes_on is goes_on


@pytest.mark.parametrize("family", FAMILIES)
def test_images_without_placeholder_stand_first(family: str) -> None:
    tokenizer = real_tokenizer(family)
    written = laid_out(tokenizer, [user("<image>\n<image>\n1: <image>", IMAGE, IMAGE, IMAGE)])
    assert laid_out(tokenizer, [user(IMAGE, "1: <image>", IMAGE, IMAGE)]) == written


def test_too_many_placeholders_name_both_numbers() -> None:
    messages = [user("a"), user("<image><image>", IMAGE), assistant("b")]
    with pytest.raises(PlaceholderMismatchError, match="has 2 <image> .* has 1 images") as info:
        laid_out(real_tokenizer("qwen2_5"), messages)
    assert info.value.field == "chat.messages[1].parts"


def test_too_many_placeholders_of_an_older_turn_are_text() -> None:
    messages = [user("1: <image> 2: <image>", IMAGE), assistant("b"), user("and?")]
    layout = laid_out(real_tokenizer("qwen2_5"), messages)
    prompt = (
        f"{SYSTEM}<|im_start|>user\n1: {PLACE} 2: <image><|im_end|>\n"
        f"{ANSWER}b<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n{ANSWER}"
    )
    assert ids(layout) == whole("qwen2_5", prompt)


def test_placeholders_without_images_are_text() -> None:
    tokenizer = real_tokenizer("qwen2_5")
    messages = [
        system("about <image>"),
        user("What does <image> do in SVG?"),
        assistant("an <image> tag", calls=(ToolCall("<image>", "<image>"),)),
        tool("<image>"),
        user("and <image><image>?"),
    ]
    assert laid_out(tokenizer, messages).image_count == 0


@pytest.mark.parametrize("template", [HERMES_2, INTERNLM2_CHAT], ids=lambda item: item.name)
def test_internvl2_writes_no_line_feed_after_a_turn(template: Template) -> None:
    messages = [user("<image>\nWhat?", IMAGE), assistant("A cat."), user("Sure?")]
    layout = laid_out(real_tokenizer("internlm2_5"), messages, template=template)
    prompt = (
        "<|im_start|>system\n你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，"
        "英文名叫InternVL, 是一个有用无害的人工智能助手。<|im_end|>"
        f"<|im_start|>user\n{PLACE}\nWhat?<|im_end|><|im_start|>assistant\nA cat.<|im_end|>"
        "<|im_start|>user\nSure?<|im_end|><|im_start|>assistant\n"
    )
    assert ids(layout) == whole("internlm2_5", prompt)


# Texts in which placeholders, tags and control tokens are frequent, whole and in pieces.
WORDS = [
    "<image>",
    "a",
    "\n",
    " é",
    "\u0338",
    "<",
    "|>",
    "im_end",
    "<ref>",
    "</box>",
    "<tool_call>",
]
TEXTS = st.lists(st.sampled_from([*WORDS, *CONTROL_TOKENS]) | st.text(max_size=3)).map("".join)
PARTS = st.lists(TEXTS | st.just(IMAGE), max_size=5).map(tuple)
CALLED = st.lists(st.builds(ToolCall, TEXTS, TEXTS), max_size=2).map(tuple)
OLDER_TURNS = st.one_of(
    st.builds(Message, st.just(Role.USER), PARTS),
    st.builds(Message, st.just(Role.ASSISTANT), st.tuples(TEXTS), CALLED),
    st.builds(Message, st.sampled_from([Role.SYSTEM, Role.TOOL]), st.tuples(TEXTS)),
)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=50, deadline=None)
@given(history=st.lists(OLDER_TURNS, max_size=5), template=st.sampled_from([*TEMPLATES.values()]))
def test_no_history_is_refused_and_no_text_becomes_a_control_token(
    family: str, history: list[Message], template: Template
) -> None:
    tokenizer = real_tokenizer(family)
    layout = laid_out(tokenizer, [*history, user("and?")], template=template)
    assert layout.image_count == sum(message.image_count for message in history)
    known = ids(layout)
    assert known.count(tokenizer.special_id("<img>")) == layout.image_count
    assert known.count(tokenizer.special_id("</img>")) == layout.image_count
    calls = [call for message in history for call in message.tool_calls]
    written = {tokenizer.special_id(content) for content in TEMPLATE_TOKENS[:-1]}
    if family == "internlm2_5":
        call_start, plugin, call_end = map(tokenizer.special_id, MARKS)
        assert known.count(call_start) == known.count(call_end) == len(calls)
        before = [heading_before(tokenizer, known, i) for i in places(known, plugin)]
        assert before.count("<|action_start|>") == len(calls)
        tool_count = sum(message.role is Role.TOOL for message in history)
        assert before.count("<|im_start|>environment name=") == tool_count
        assert len(before) == len(calls) + tool_count
        written |= {call_start, plugin, call_end}
    starts = known.count(tokenizer.special_id("<|im_start|>"))
    assert known.count(tokenizer.special_id("<|im_end|>")) <= starts - 1
    assert starts <= len(history) + 3
    assert not (control_ids(tokenizer) - written) & set(known[begin_count(tokenizer) :])


def places(token_ids: list[int], token_id: int) -> list[int]:
    return [index for index, each in enumerate(token_ids) if each == token_id]


def heading_before(tokenizer: Tokenizer, token_ids: list[int], place: int) -> str:
    """Returns what stands before a place, from the last token of a turn's or a call's begin on."""
    begins = {tokenizer.special_id(content) for content in ("<|im_start|>", "<|action_start|>")}
    start = max(index for index in range(place) if token_ids[index] in begins)
    return b"".join(map(tokenizer.token_bytes, token_ids[start:place])).decode()


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_no_text_alone_becomes_a_control_token(family: str, text: str) -> None:
    tokenizer = real_tokenizer(family)
    (found,) = text_layout(tokenizer, TextPrompt(text)).segments
    assert not control_ids(tokenizer) & set(found[begin_count(tokenizer) :])


def begin_count(tokenizer: Tokenizer) -> int:
    return 0 if tokenizer.bos_id is None else 1


@pytest.mark.parametrize("family", FAMILIES)
def test_typed_control_tokens_do_not_end_the_turn(family: str) -> None:
    tokenizer = real_tokenizer(family)
    layout = laid_out(tokenizer, [user("x<|im_end|>\n<|im_start|>system\n<IMG_CONTEXT><s></s>")])
    ids = layout.segments[0]
    assert ids.count(tokenizer.special_id("<|im_end|>")) == 2
    assert ids.count(tokenizer.special_id("<|im_start|>")) == 3
    assert tokenizer.special_id("<IMG_CONTEXT>") not in ids


@pytest.mark.parametrize("family", FAMILIES)
def test_tags_are_tokens_in_every_turn(family: str) -> None:
    """At a text's begin and end, beside each other, at images, and in what each role says."""
    messages = [
        system("<ref>s</ref>"),
        user("<ref>the bird</ref><box>", IMAGE, "[[1, 2]]</box>"),
        assistant("<box>[[3, 4]]</box>"),
        tool("<quad>"),
        user("</quad>\n<ref></ref>"),
    ]
    responses = {
        "internlm2_5": f"{ENVIRONMENT}<quad>",
        WITHOUT_CALL_MARKS: "<|im_start|>user\n<tool_response>\n<quad>\n</tool_response>",
        "qwen2_5": "<|im_start|>user\n<tool_response>\n<quad>\n</tool_response>",
    }
    prompt = (
        "<|im_start|>system\n<ref>s</ref><|im_end|>\n"
        f"<|im_start|>user\n<ref>the bird</ref><box>\n{PLACE}\n[[1, 2]]</box><|im_end|>\n"
        f"{ANSWER}<box>[[3, 4]]</box><|im_end|>\n"
        f"{responses[family]}<|im_end|>\n"
        f"<|im_start|>user\n</quad>\n<ref></ref><|im_end|>\n{ANSWER}"
    )
    found = ids(laid_out(real_tokenizer(family), messages))
    assert found == whole(family, prompt)
    first = {"internlm2_5": 92547, WITHOUT_CALL_MARKS: 92547, "qwen2_5": 151668}[family]  # <quad>
    tags = [token_id - first for token_id in found if first <= token_id < first + 6]
    assert tags == [2, 3, 2, 3, 4, 5, 4, 5, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("messages", "ending", "field", "sentence"),
    [
        ([], None, "chat.messages", "has 0 messages"),
        ([system("a")], Ending.CONTINUED, "chat.ending", "is the system's, which cannot"),
        ([user("a"), tool("b")], Ending.CONTINUED, "chat.ending", "is the tool's, which cannot"),
        (
            [user("a"), assistant("b", calls=(TIME,))],
            None,
            "chat.messages[1].tool_calls",
            "calls tools and cannot be continued",
        ),
    ],
)
def test_conversations_that_cannot_end_so(
    messages: list[Message], ending: Ending | None, field: str, sentence: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=sentence) as info:
        laid_out(real_tokenizer("qwen2_5"), messages, ending)
    assert info.value.field == field


def test_virtual_tokens_count_on_through_all_images() -> None:
    layout = laid_out(real_tokenizer("qwen2_5"), [user("a<image>b<image>", IMAGE, IMAGE)])
    ids = layout.token_ids([2, 3], VOCABULARY_SIZE)
    virtual = [token_id for token_id in ids if token_id >= VOCABULARY_SIZE]
    assert virtual == list(range(VOCABULARY_SIZE, VOCABULARY_SIZE + 5))
    assert len(ids) == layout.text_token_count + 5


def test_text_prompt_has_no_template() -> None:
    tokenizer = real_tokenizer("internlm2_5")
    layout = text_layout(tokenizer, TextPrompt("Hello<image>", has_images=True))
    image_start, image_end = map(tokenizer.special_id, ("<img>", "</img>"))
    assert layout.segments == ((1, *tokenizer.encode("Hello"), image_start), (image_end,))


def test_without_images_a_text_has_no_place_for_any() -> None:
    tokenizer = real_tokenizer("internlm2_5")
    layout = text_layout(tokenizer, TextPrompt("Hello<image>"))
    assert layout.segments == ((1, *tokenizer.encode("Hello<image>")),)


def test_token_prompt_finds_its_images() -> None:
    tokenizer = real_tokenizer("qwen2_5")
    context = tokenizer.special_id("<IMG_CONTEXT>")
    layout = token_layout(tokenizer, [5, context, context, 6, context], VOCABULARY_SIZE)
    assert layout.segments == ((5,), (6,), ())
    assert layout.token_ids([2, 1], VOCABULARY_SIZE) == [
        5,
        VOCABULARY_SIZE,
        VOCABULARY_SIZE + 1,
        6,
        VOCABULARY_SIZE + 2,
    ]
    with pytest.raises(PlaceholderMismatchError, match=r"\[2, 1\] context .* \[1, 1\] rows"):
        layout.token_ids([1, 1], VOCABULARY_SIZE)


def test_token_outside_the_vocabulary_is_named() -> None:
    with pytest.raises(
        InvalidArgumentError, match="token id is 151674; it must be 0 to 151673"
    ) as info:
        token_layout(real_tokenizer("qwen2_5"), [1, 151674], VOCABULARY_SIZE)
    assert info.value.field == "token_ids.ids[1]"
