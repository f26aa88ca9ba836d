"""Guided decoding: every walk over the masks ends in the guide's language, and bad guides end."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.engines import guide_trial, guides
from llm_service.engines.base import Account
from llm_service.engines.guides import (
    MASK_CREDIT_SECONDS,
    MAX_SOURCE_BYTE_COUNT,
    SECONDS_PER_MASK,
    GuideCompiler,
)
from llm_service.engines.vocabulary import token_bits
from llm_service.sampling import Guide
from protos.errors import InvalidArgumentError, OverloadedError
from protos.status import MAX_MESSAGE_LENGTH
from tests.real_tokenizers import FAMILIES, real_tokenizer
from tests.unit.llm_service.matchers import (
    VOCABULARY_SIZES,
    allowed,
    allowed_ids,
    compiler,
    end_token,
    new_matcher,
    write,
)

MAX_STEP_COUNT = 2000
SENTENCE = Guide("regex", "[ab]{2,4}")


def walk(family: str, guide: Guide, seed: int) -> str:
    """Returns the text of a random output; it ends where the matcher lets it end."""
    choice = random.Random(seed)
    matcher = new_matcher(family, guide)
    text = b""
    for _ in range(MAX_STEP_COUNT):
        token_id = int(choice.choice(allowed_ids(family, matcher)))
        matcher.accept(token_id)
        if token_id == end_token(family):
            assert matcher.failure is None
            return text.decode()
        assert not real_tokenizer(family).is_special(token_id)
        text += real_tokenizer(family).token_bytes(token_id)
    raise AssertionError(f"no end after {MAX_STEP_COUNT} tokens: {text!r}")


@contextmanager
def trials_without_a_child() -> Iterator[None]:
    """Tries guides in this process, at a tenth of the time; for guides that the trial survives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guides, "_trial", guide_trial.refusal)
        yield


def leaf_schemas() -> st.SearchStrategy[dict[str, Any]]:
    bounds = st.tuples(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6)).map(sorted)
    return st.one_of(
        st.sampled_from([{"type": "null"}, {"type": "boolean"}]),
        bounds.map(lambda b: {"type": "integer", "minimum": b[0], "maximum": b[1]}),
        st.integers(0, 6).map(lambda n: {"type": "string", "maxLength": n}),
        st.sampled_from(["^[a-c]{1,3}$", "^x?[0-9]{2}$"]).map(
            lambda pattern: {"type": "string", "pattern": pattern}
        ),
        st.lists(st.one_of(st.text(max_size=4), st.integers(-9, 9)), min_size=1, max_size=3).map(
            lambda values: {"enum": values}
        ),
    )


def parent_schemas(
    children: st.SearchStrategy[dict[str, Any]],
) -> st.SearchStrategy[dict[str, Any]]:
    names = st.text('abc é"\\', min_size=1, max_size=4)
    objects = st.dictionaries(names, children, max_size=3).flatmap(
        lambda properties: st.sets(st.sampled_from([*properties, ""])).map(
            lambda required: {
                "type": "object",
                "properties": properties,
                "required": sorted(required - {""}),
                "additionalProperties": False,
            }
        )
    )
    arrays = st.tuples(children, st.integers(0, 2), st.integers(0, 2)).map(
        lambda facts: {
            "type": "array",
            "items": facts[0],
            "minItems": facts[1],
            "maxItems": facts[1] + facts[2],
        }
    )
    choices = st.lists(children, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
    return st.one_of(objects, arrays, choices)


SCHEMAS = st.recursive(leaf_schemas(), parent_schemas, max_leaves=6)


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is of a schema that `SCHEMAS` makes."""
    if "anyOf" in schema:
        return any(fits(value, option) for option in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    match value, schema["type"]:
        case (None, "null") | (bool(), "boolean"):
            return True
        case int(), "integer":
            return bool(schema["minimum"] <= value <= schema["maximum"])
        case str(), "string":
            pattern, longest = schema.get("pattern", ""), schema.get("maxLength", 3)
            return len(value) <= longest and re.search(pattern, value) is not None
        case list(), "array":
            in_bounds = schema["minItems"] <= len(value) <= schema["maxItems"]
            return in_bounds and all(fits(item, schema["items"]) for item in value)
        case dict(), "object":
            properties = schema["properties"]
            return set(schema["required"]) <= set(value) and all(
                key in properties and fits(item, properties[key]) for key, item in value.items()
            )
    return False


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40, deadline=None)
@given(schema=SCHEMAS, seed=st.integers(0, 2**32))
def test_what_follows_a_schema_parses_and_fits_it(
    family: str, schema: dict[str, Any], seed: int
) -> None:
    with trials_without_a_child():
        text = walk(family, Guide("json_schema", json.dumps(schema)), seed)
    assert fits(json.loads(text), schema), text


REGEX_PIECES = st.sampled_from(
    [
        "[a-c]",
        r"[0-9]{1,3}",
        "(ab|cd|)",
        "x?",
        "[α-ω]{0,2}",
        " ",
        r"\.",
        "[^\x00-\x7f]{1,2}",
        "日本",
    ]
)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=30, deadline=None)
@given(pieces=st.lists(REGEX_PIECES, min_size=1, max_size=6), seed=st.integers(0, 2**32))
def test_what_follows_a_regex_matches_it(family: str, pieces: list[str], seed: int) -> None:
    regex = "".join(pieces)
    with trials_without_a_child():
        text = walk(family, Guide("regex", regex), seed)
    assert re.fullmatch(regex, text)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_follows_a_grammar_is_of_its_language(family: str) -> None:
    grammar = 'start: sum\nsum: NUMBER | "(" NUMBER "+" sum ")"\nNUMBER: /[1-9]/'
    texts = {walk(family, Guide("grammar", grammar), seed) for seed in range(20)}
    for text in texts:
        assert re.fullmatch(r"(\([1-9]\+)*[1-9]\)*", text)
        assert text.count("(") == text.count(")")
    assert len(texts) > 5


@pytest.mark.parametrize("family", FAMILIES)
def test_any_object_begins_with_a_brace_and_may_be_of_any_shape(family: str) -> None:
    guide = Guide("json_object")
    assert all(
        real_tokenizer(family).token_bytes(token_id).startswith(b"{")
        for token_id in allowed(family, new_matcher(family, guide))
    )
    matcher = new_matcher(family, guide)
    write(family, matcher, '{"a": [1, {"b": null}],\n  "é": "x\\n"}')
    assert allowed(family, matcher) == [end_token(family)]


def test_whitespace_in_json_ends() -> None:
    matcher = new_matcher("qwen2_5", Guide("json_object"))
    write("qwen2_5", matcher, "{\n" + " " * 20)
    blanks = {real_tokenizer("qwen2_5").encode(text)[0] for text in (" ", "\n", "\t")}
    assert not blanks & set(allowed("qwen2_5", matcher))


def test_a_schema_cannot_loosen_its_own_enforcement() -> None:
    options = {"item_separator": "x", "key_separator": "y", "whitespace_pattern": "z"}
    schema = {"x-guidance": options, "type": "array", "items": {"const": 1}, "minItems": 2}
    matcher = new_matcher("qwen2_5", Guide("json_schema", json.dumps(schema)))
    write("qwen2_5", matcher, "[1, 1]")


def test_all_stop_tokens_are_allowed_where_the_output_may_end_and_only_there() -> None:
    ends = [end_token("qwen2_5"), real_tokenizer("qwen2_5").special_id("<|endoftext|>"), 151673]
    matcher = new_matcher("qwen2_5", SENTENCE, *ends)
    assert not set(ends) & set(allowed("qwen2_5", matcher))
    write("qwen2_5", matcher, "ab")
    may_end = set(allowed("qwen2_5", matcher))
    assert set(ends) < may_end
    write("qwen2_5", matcher, "ab")
    assert set(allowed("qwen2_5", matcher)) == set(ends)
    matcher.accept(ends[1])
    assert matcher.failure is None


def test_a_text_token_that_stops_is_no_part_of_the_language() -> None:
    (a,) = real_tokenizer("qwen2_5").encode("a")
    matcher = new_matcher("qwen2_5", SENTENCE, a)
    assert a not in allowed("qwen2_5", matcher)
    write("qwen2_5", matcher, "bb")
    assert a in allowed("qwen2_5", matcher)


def test_special_tokens_and_ids_without_text_are_never_allowed() -> None:
    tokenizer = real_tokenizer("qwen2_5")
    inside = allowed("qwen2_5", new_matcher("qwen2_5", Guide("regex", "(?s:.)*")))
    assert all(tokenizer.token_bytes(token_id) for token_id in inside)
    special = [token_id for token_id in inside if tokenizer.is_special(token_id)]
    assert special == [end_token("qwen2_5")]  # the empty output is of this language


def test_a_dead_end_is_a_failure_and_allows_only_the_end() -> None:
    # No token but the control token itself has this id, and no text holds it.
    guide = Guide("grammar", 'start: "a" <[0-256]>{2} "a"')
    (a,) = real_tokenizer("qwen2_5").encode("a")
    matcher = new_matcher("qwen2_5", guide, *range(257))
    assert allowed("qwen2_5", matcher) == list(range(257))
    matcher.accept(a)
    assert allowed("qwen2_5", matcher) == list(range(257))
    assert matcher.failure is not None
    assert matcher.failure.field == "guided.grammar"


def test_a_token_that_was_not_allowed_is_a_failure() -> None:
    (c,) = real_tokenizer("qwen2_5").encode("c")
    matcher = new_matcher("qwen2_5", SENTENCE)
    matcher.accept(c)
    assert matcher.failure is not None
    assert allowed("qwen2_5", matcher) == [end_token("qwen2_5")]


def test_a_step_beyond_the_limits_is_a_failure() -> None:
    matcher = new_matcher("qwen2_5", Guide("regex", "((((a{1000}){1000}){1000}){1000})"))
    (token_id, *_) = allowed("qwen2_5", matcher)
    matcher.accept(token_id)
    assert allowed("qwen2_5", matcher) == [end_token("qwen2_5")]
    assert matcher.failure is not None


# A word is derived in the more ways the longer it is, and its mask takes the longer to compute.
AMBIGUOUS = Guide("grammar", 'start: a\na: a a | "a" | "b" | " "')


@pytest.mark.slow
def test_a_guide_that_takes_too_long_is_a_failure_of_all_choices_together() -> None:
    account = Account()
    ends = frozenset([end_token("qwen2_5")])
    matchers = [
        asyncio.run(compiler("qwen2_5").matcher(AMBIGUOUS, ends, account)) for _ in range(4)
    ]
    row = torch.zeros(-(-VOCABULARY_SIZES["qwen2_5"] // 32), dtype=torch.int32)
    token_ids: list[int] = []
    while not any(matcher.failure for matcher in matchers):
        assert account.mask_count < 1000
        for matcher in matchers:
            matcher.advance(token_ids, row, may_end=False)
            matcher.charge()
        token_ids = real_tokenizer("qwen2_5").encode("a")
    (failure, *_) = [matcher.failure for matcher in matchers if matcher.failure]
    assert "the grammar takes too long to follow: " in failure.message
    assert failure.field == "guided.grammar"
    # What it may take, and at most one mask more than that, whose time llguidance bounds.
    assert account.mask_seconds < MASK_CREDIT_SECONDS + SECONDS_PER_MASK * account.mask_count + 5


def test_an_ordinary_guide_does_not_come_near_its_limit() -> None:
    account = Account()
    ends = frozenset([end_token("qwen2_5")])
    matcher = asyncio.run(compiler("qwen2_5").matcher(Guide("json_object"), ends, account))
    row = torch.zeros(-(-VOCABULARY_SIZES["qwen2_5"] // 32), dtype=torch.int32)
    text = json.dumps({f"key {i}": [i, "a text", {"deeper": None}] for i in range(50)})
    token_ids: list[int] = []
    for token_id in real_tokenizer("qwen2_5").encode(text):
        matcher.advance(token_ids, row)
        matcher.charge()
        token_ids = [token_id]
    assert matcher.failure is None
    assert account.mask_seconds < 0.1 * SECONDS_PER_MASK * account.mask_count


def test_matchers_of_one_guide_do_not_share_their_place() -> None:
    first, second = (new_matcher("qwen2_5", SENTENCE) for _ in range(2))
    write("qwen2_5", first, "abab")
    assert end_token("qwen2_5") not in allowed("qwen2_5", second)


def test_a_guide_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    guide = Guide("regex", "compiled once")
    new_matcher("qwen2_5", guide)
    monkeypatch.setattr(GuideCompiler, "_compile", None)
    new_matcher("qwen2_5", guide)


def chain_of_arrays(length: int) -> str:
    links = {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(length)}
    return json.dumps({"$defs": {**links, f"d{length}": {}}, "$ref": "#/$defs/d0"})


def chain_of_rules(length: int) -> str:
    rules = [f"r{i}: r{i + 1}" for i in range(length)]
    return "\n".join(["start: r0", *rules, f'r{length}: "a"'])


Kind = Literal["json_schema", "regex", "grammar"]
REFUSED: list[tuple[Kind, str, str]] = [
    ("json_schema", "", "EOF"),
    ("json_schema", "{", "EOF"),
    ("json_schema", "[1]", "object"),
    ("json_schema", '{"type": "strng"}', "strng"),
    ("json_schema", '{"not": {"type": "string"}}', "not"),
    ("json_schema", '{"x-guidance": {"lenient": true}, "not": {"const": 1}}', "'not'"),
    ("json_schema", '{"type": "string", "enum": [1]}', "of two types"),
    ("json_schema", '{"$ref": "#"}', "no text"),
    ("json_schema", '{"$ref": "http://localhost/schema"}', "not fetch"),
    ("json_schema", '{"items":' * 2000 + "{}" + "}" * 2000, "levels deep"),
    # These three are what the trial in a child process is for.
    ("json_schema", chain_of_arrays(1400), "takes more than 4 MiB of stack to"),
    (
        "json_schema",
        '{"type": "integer", "multipleOf": 999983}',
        "takes more than 2 s of CPU time to",
    ),
    ("grammar", chain_of_rules(4000), "takes more than 4 MiB of stack to"),
    ("regex", "((", "unclosed group"),
    ("regex", "(?=a)b", "look-around"),
    ("regex", r"[^\s\S]", "no text"),
    ("regex", "(" * 2000 + ")" * 2000, "nest"),
    ("regex", "a?" * 30_000, "too big"),
    ("grammar", "", "Empty"),
    ("grammar", 'word: "a"', "start"),
    ("grammar", "start: (", "Expected"),
    ("grammar", 'start: <|im_start|> "a"', "special token"),
    ("grammar", "start: " + "(" * 500, "nested"),
]


@pytest.mark.parametrize(
    ("kind", "source", "reason"),
    REFUSED,
    ids=[f"{kind}-{i}" for i, (kind, *_) in enumerate(REFUSED)],
)
def test_a_bad_guide_is_refused_by_its_field_and_reason(
    kind: Kind, source: str, reason: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=re.escape(reason)) as refusal:
        new_matcher("qwen2_5", Guide(kind, source))
    assert re.fullmatch(rf"guided\.{kind}(\..*)?", refusal.value.field)
    assert len(refusal.value.message) < MAX_MESSAGE_LENGTH
    new_matcher("qwen2_5", SENTENCE)


def test_a_guide_that_is_too_long_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=str(MAX_SOURCE_BYTE_COUNT)):
        new_matcher("qwen2_5", Guide("regex", "é" * (MAX_SOURCE_BYTE_COUNT // 2 + 1)))


def test_a_machine_that_is_too_busy_to_try_a_guide_refuses_it_for_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guide = Guide("regex", "tried again")
    monkeypatch.setattr(guides, "TRIAL_SECONDS", 0.001)
    with pytest.raises(OverloadedError, match="too busy"):
        new_matcher("qwen2_5", guide)
    monkeypatch.undo()
    new_matcher("qwen2_5", guide)


async def test_a_checked_guide_is_kept_for_its_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    guide, bad = Guide("regex", "checked first"), Guide("regex", "checked (first")
    await compiler("qwen2_5").compiled(guide)
    with pytest.raises(InvalidArgumentError) as checked:
        await compiler("qwen2_5").compiled(bad)
    monkeypatch.setattr(GuideCompiler, "_compile", None)
    await compiler("qwen2_5").matcher(guide, frozenset({1}), Account())
    with pytest.raises(InvalidArgumentError) as asked:
        await compiler("qwen2_5").matcher(bad, frozenset({1}), Account())
    assert (checked.value.message, checked.value.field) == (asked.value.message, asked.value.field)


def test_a_guide_without_a_token_to_end_with_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="ignores them all"):
        asyncio.run(compiler("qwen2_5").matcher(SENTENCE, frozenset(), Account()))


def test_bits_stand_where_llguidance_puts_them() -> None:
    row = token_bits([0, 31, 33, 95], 97)
    assert row.tolist() == [1 - 2**31, 2, -(2**31), 0]
