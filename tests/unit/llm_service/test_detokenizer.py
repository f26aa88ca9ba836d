from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llm_service.detokenizer import Detokenizer, StopStrings
from tests.real_tokenizers import real_tokenizer


def test_half_characters_wait_for_their_other_half() -> None:
    tokenizer = real_tokenizer("internlm2_5")
    ids = tokenizer.encode("a🐼b")
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push([token_id]) for token_id in ids] == ["a", "", "", "", "🐼", "b"]


def test_a_character_that_never_ends_is_replaced_at_the_end() -> None:
    tokenizer = real_tokenizer("internlm2_5")
    panda = tokenizer.encode("🐼")
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.push(panda[:2]) == ""
    assert detokenizer.finish() == "\ufffd"


def test_only_the_first_space_of_sentencepiece_goes() -> None:
    tokenizer = real_tokenizer("internlm2_5")
    detokenizer = Detokenizer(tokenizer)
    words = [detokenizer.push([token_id]) for token_id in tokenizer.encode(" red panda")]
    assert "".join(words) == "red panda"


def test_a_guided_text_keeps_its_first_space() -> None:
    tokenizer = real_tokenizer("internlm2_5")
    detokenizer = Detokenizer(tokenizer, keep_first_space=True)
    assert detokenizer.push(tokenizer.encode(" red panda")) == " red panda"


def test_special_tokens_are_kept_on_request() -> None:
    tokenizer = real_tokenizer("qwen2_5")
    ids = [tokenizer.special_id("<ref>"), *tokenizer.encode("x"), tokenizer.special_id("</ref>")]
    assert Detokenizer(tokenizer).push(ids) == "x"
    assert Detokenizer(tokenizer, skip_special_tokens=False).push(ids) == "<ref>x</ref>"


def test_stop_string_across_deltas() -> None:
    stops = StopStrings(["STOP"])
    assert stops.push("abcST") == ("abc", None)
    assert stops.push("O") == ("", None)
    assert stops.push("P and more") == ("", "STOP")


def test_tail_that_turns_out_harmless_is_given_back() -> None:
    stops = StopStrings(["STOP"])
    assert stops.push("ST") == ("", None)
    assert stops.push("ART") == ("START", None)
    assert stops.push("S") == ("", None)
    assert stops.finish() == "S"


def test_earliest_of_several_stop_strings_wins() -> None:
    assert StopStrings(["b", "ab"]).push("xxab") == ("xx", "ab")


@given(
    st.text("ab", max_size=40),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.data(),
)
def test_streaming_cuts_where_the_whole_text_would_be_cut(
    text: str, strings: list[str], data: st.DataObject
) -> None:
    stops = StopStrings(strings)
    emitted, rest, met = "", text, None
    while rest and met is None:
        size = data.draw(st.integers(1, len(rest)))
        delta, rest = rest[:size], rest[size:]
        certain, met = stops.push(delta)
        emitted += certain
    ends = [text.index(string) + len(string) for string in strings if string in text]
    if met is None:
        assert emitted + stops.finish() == text
        assert not ends
    else:
        # Nothing of a stop string that is whole in what was read was let through.
        assert text.startswith(emitted + met)
        assert not any(string in emitted for string in strings)
