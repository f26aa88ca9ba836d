"""Choices, log probabilities, biases and formats with the openai client and three real processes.

The weights are random, so an answer that parses owes it to its guide alone.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Literal

import pytest
from openai import BadRequestError, OpenAI
from pydantic import BaseModel, Field

from gateway.local.stack import Stack
from llm_service.tokenizer import Tokenizer
from tests.e2e.conftest import Engine, picture_url, torch_alone

PICTURE: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": picture_url("boat.jpg"), "detail": "low"}},
        ],
    }
]
TEXT: list[Any] = [{"role": "user", "content": "Tell me about the sea, and about boats on it."}]


@pytest.fixture(scope="module")
def tokenizer(stack: Stack) -> Tokenizer:
    arguments = stack.llm.arguments
    return Tokenizer.from_checkpoint(Path(arguments[arguments.index("--checkpoint") + 1]))


def ask(client: OpenAI, model: str, messages: list[Any] = TEXT, **options: Any) -> Any:
    """Returns the completion of at most 8 tokens, or as many as the options say."""
    return client.chat.completions.create(
        **{"model": model, "messages": messages, "max_tokens": 8, **options}
    )


class Boat(BaseModel):
    """What the parsed answers are."""

    kind: Literal["sailing boat", "ferry", "größtes Schiff"]
    masts: int = Field(ge=0, le=12)
    colours: list[Literal["red", "white"]] = Field(max_length=2)
    name: str | None = Field(max_length=5)


@pytest.mark.parametrize("messages", [TEXT, PICTURE], ids=["text", "picture"])
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_an_answer_parses_as_the_class_that_was_asked_for(
    client: OpenAI, model: str, messages: list[Any], temperature: float
) -> None:
    completion = client.chat.completions.parse(
        model=model,
        messages=messages,
        response_format=Boat,
        n=3,
        temperature=temperature,
        seed=1,
        max_tokens=400,
    )
    for choice in completion.choices:
        assert choice.finish_reason == "stop"
        assert isinstance(choice.message.parsed, Boat)


def test_a_stream_parses_as_the_class_that_was_asked_for(client: OpenAI, model: str) -> None:
    with client.chat.completions.stream(
        model=model, messages=TEXT, response_format=Boat, max_tokens=400
    ) as stream:
        (choice,) = stream.get_final_completion().choices
    assert isinstance(choice.message.parsed, Boat)


def test_any_json_object_begins_as_one(client: OpenAI, model: str) -> None:
    """Random weights hardly ever end a string, and so no object of any shape."""
    completion = ask(client, model, response_format={"type": "json_object"})
    assert completion.choices[0].message.content.startswith("{")
    assert completion.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("outputs", "pattern"),
    [
        ({"regex": "(red|blue) [0-9]{2,3}"}, "(red|blue) [0-9]{2,3}"),
        ({"json": {"type": "array", "items": {"const": 1}, "maxItems": 2}}, r"\[[\s1,]*\]"),
        ({"grammar": 'start: "<" WORD ">"\nWORD: /[ab]{1,4}/'}, "<[ab]{1,4}>"),
    ],
    ids=["regex", "json", "grammar"],
)
def test_structured_outputs(
    client: OpenAI, model: str, outputs: dict[str, Any], pattern: str
) -> None:
    completion = ask(
        client,
        model,
        n=4,
        temperature=2,
        seed=3,
        max_tokens=200,
        extra_body={"structured_outputs": outputs},
    )
    for choice in completion.choices:
        assert choice.finish_reason == "stop"
        assert re.fullmatch(pattern, choice.message.content)


def test_a_guide_that_ends_late_is_cut_at_the_limit(client: OpenAI, model: str) -> None:
    completion = ask(client, model, extra_body={"structured_outputs": {"regex": "a{100}"}})
    choice = completion.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("length", "a" * 8)


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_guide_that_ends_early_ends_before_min_tokens(
    client: OpenAI, model: str, temperature: float
) -> None:
    extra = {"structured_outputs": {"regex": "ab"}, "min_tokens": 6}
    choice = ask(client, model, temperature=temperature, extra_body=extra).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("stop", "ab")


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"n": 17}, "n"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"999999": 1}}, "logit_bias.999999"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"extra_body": {"cache_salt": "x" * 129}}, "cache_salt"),
        ({"extra_body": {"structured_outputs": {"regex": "(("}}}, "structured_outputs.regex"),
        (
            {"extra_body": {"structured_outputs": {"regex": "a", "grammar": "b"}}},
            "structured_outputs",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "strng"}},
                }
            },
            "response_format.json_schema.schema.type",
        ),
        (
            {"response_format": {"type": "json_object"}, "extra_body": {"ignore_eos": True}},
            "response_format",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_bad_option_is_named(
    client: OpenAI, model: str, options: dict[str, Any], param: str, stream: bool
) -> None:
    with pytest.raises(BadRequestError) as caught:
        ask(client, model, stream=stream, **options)
    assert caught.value.param == param
    assert "guided." not in caught.value.message


def test_a_guide_that_breaks_down_on_its_way_is_an_error(client: OpenAI, model: str) -> None:
    """Its first token is easy, the rest is beyond what a step may cost."""
    outputs = {"regex": "((((a{1000}){1000}){1000}){1000})"}
    with pytest.raises(BadRequestError) as caught:
        ask(client, model, extra_body={"structured_outputs": outputs})
    assert caught.value.param == "structured_outputs.regex"
    assert ask(client, model).choices[0].finish_reason


def test_each_choice_is_that_of_its_seed(client: OpenAI, model: str) -> None:
    sampled: dict[str, Any] = {"temperature": 1.0, "extra_body": {"ignore_eos": True}}
    together = ask(client, model, n=4, seed=5, **sampled)
    assert [choice.index for choice in together.choices] == [0, 1, 2, 3]
    texts = [choice.message.content for choice in together.choices]
    alone = [ask(client, model, seed=5 + index, **sampled) for index in range(4)]
    assert texts == [completion.choices[0].message.content for completion in alone]
    assert len(set(texts)) > 1
    assert together.usage.completion_tokens == 4 * 8
    assert together.usage.prompt_tokens == alone[0].usage.prompt_tokens


def test_streamed_choices_are_the_whole_ones(client: OpenAI, model: str) -> None:
    options: dict[str, Any] = {"n": 3, "temperature": 1.0, "seed": 9, "messages": PICTURE}
    whole = ask(client, model, **options)
    texts, reasons = ["", "", ""], ["", "", ""]
    for chunk in ask(client, model, stream=True, **options):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] += choice.finish_reason or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]


def test_logprobs_are_of_the_tokens(client: OpenAI, model: str) -> None:
    completion = ask(client, model, logprobs=True, extra_body={"ignore_eos": True})
    contents = completion.choices[0].logprobs.content
    assert len(contents) == completion.usage.completion_tokens == 8
    shown = b"".join(bytes(token.bytes) for token in contents).decode(errors="replace")
    assert shown == completion.choices[0].message.content
    assert all(token.logprob < 0 for token in contents)


def test_top_logprobs_are_of_the_best_in_the_tokens_places(
    client: OpenAI, engine: Engine, model: str
) -> None:
    options: dict[str, Any] = {"logprobs": True, "extra_body": {"ignore_eos": True}}
    bare = ask(client, model, **options).choices[0].logprobs.content
    with torch_alone(engine, "top_logprobs"):
        contents = ask(client, model, top_logprobs=5, **options).choices[0].logprobs.content
        assert [token.logprob for token in contents] == [token.logprob for token in bare]
        for token in contents:
            tops = [top.logprob for top in token.top_logprobs]
            assert len(tops) == 5
            assert tops == sorted(tops, reverse=True)
            assert token.logprob == tops[0]  # greedy
            assert sum(map(math.exp, tops)) <= 1 + 1e-6


def test_streamed_logprobs_are_the_whole_ones(client: OpenAI, engine: Engine, model: str) -> None:
    top: dict[str, Any] = {"top_logprobs": 2} if engine == "torch" else {}
    options: dict[str, Any] = {"logprobs": True, "messages": PICTURE, **top}
    whole = ask(client, model, **options).choices[0].logprobs.content
    streamed = [
        token
        for chunk in ask(client, model, stream=True, **options)
        for choice in chunk.choices
        if choice.logprobs
        for token in choice.logprobs.content
    ]
    assert streamed == whole


def test_a_bias_decides(client: OpenAI, model: str, tokenizer: Tokenizer) -> None:
    (token_id,) = tokenizer.encode("Q")
    completion = ask(client, model, logit_bias={str(token_id): 100})
    assert completion.choices[0].message.content == "Q" * 8


def test_a_salt_keeps_its_requests_apart(client: OpenAI, model: str) -> None:
    def cached(salt: str) -> int:
        usage = ask(client, model, max_tokens=1, extra_body={"cache_salt": salt}).usage
        count: int = usage.prompt_tokens_details.cached_tokens
        return count

    assert [cached("one") > 0, cached("one") > 0, cached("two") > 0] == [False, True, False]


def test_a_priority_is_taken(client: OpenAI, model: str) -> None:
    assert ask(client, model, extra_body={"priority": -3}).choices[0].finish_reason
