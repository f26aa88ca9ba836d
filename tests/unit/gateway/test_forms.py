"""A choice of texts as the regular expression that the LLM service gets for it."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from gateway.openai.forms import regex_of

texts = st.text(st.sampled_from("ab\\.+*?()|[]{}^$#&-~ /<>%\n\té😀"), max_size=6)


@given(st.lists(texts, min_size=1, max_size=4), texts)
def test_the_chosen_texts_match_letter_for_letter_and_no_others(
    choices: list[str], other: str
) -> None:
    expression = re.compile(regex_of(choices))
    assert all(expression.fullmatch(choice) for choice in choices)
    assert bool(expression.fullmatch(other)) == (other in choices)
