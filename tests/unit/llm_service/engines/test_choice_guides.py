"""A choice of texts, as the gateway asks for it, to llguidance's own reading of expressions."""

from __future__ import annotations

from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from gateway.openai.forms import regex_of

texts = st.text(min_size=1, max_size=6)


@cache
def tokenizer() -> LLTokenizer:
    return LLTokenizer("byte")


def matches(expression: str, text: str) -> bool:
    matcher = LLMatcher(tokenizer(), LLMatcher.grammar_from_regex(expression), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def test_each_ascii_character_is_a_letter_of_a_choice() -> None:
    for character in map(chr, range(1, 128)):
        expression = regex_of([f"a{character}", f"{character}{character}b"])
        assert matches(expression, f"a{character}")
        assert matches(expression, f"{character}{character}b")
        assert not matches(expression, "a" if character != "a" else "b")
        assert not matches(expression, f"{character}b")


@settings(max_examples=50, deadline=None)
@given(st.lists(texts, min_size=1, max_size=4), texts)
def test_the_chosen_texts_match_letter_for_letter_and_no_others(
    choices: list[str], other: str
) -> None:
    expression = regex_of(choices)
    assert all(matches(expression, choice) for choice in choices)
    assert matches(expression, other) == (other in choices)
