"""Guides as grammars of llguidance's.

A "grammar" is in its dialect of Lark (llguidance, docs/syntax.md); a "regex" is one of Rust's regex
crate, without look-around, and matches the whole output; a "json_schema" is one of Draft 2020-12 as
far as llguidance enforces it, and refused where it does not; schemas.py leaves out before what asks
for nothing. JSON has whitespace between its tokens as llama.cpp's grammars have it, at most a line
feed and 20 blanks: where any whitespace may follow, a weak model writes nothing else to its last
token. (llguidance 0.7.29, which TensorRT-LLM 1.2.1 pins, ignores this limit.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from llguidance import LLMatcher

from llm_service.engines.schemas import lean, relaxed
from llm_service.pieces import ControlToken
from llm_service.sampling import Guide
from llm_service.tools.base import Envelope, ToolDefinition
from protos.strictness import ADDITIONS, OPENNESS, close

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

# All that "x-guidance" in a schema could change, so that the output is JSON and fits the schema.
JSON_OPTIONS: JsonCompileOptions = {
    "whitespace_pattern": r" |\n[ \t]{0,20}",
    "item_separator": ",",
    "key_separator": ":",
    "coerce_one_of": False,
    "lenient": False,
}
ANY_OBJECT = LLMatcher.grammar_from_json_schema({"type": "object"}, overrides=JSON_OPTIONS)


def guide_grammar(guide: Guide) -> str:
    """Returns the grammar of a guide.

    Raises:
        ValueError: a schema is no JSON object.
    """
    match guide.kind:
        case "json_object":
            return ANY_OBJECT
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(lean(guide.source), overrides=JSON_OPTIONS)
        case "regex":
            return LLMatcher.grammar_from_regex(guide.source)
        case "grammar":
            return LLMatcher.grammar_from_lark(guide.source)


def arguments_grammar(tool: ToolDefinition, tool_count: int) -> str:
    """Returns the grammar of one of some tools' arguments: an object, say its schema so or not.

    They have no properties but those that it lists, where that is all that it says of others: a
    weak model would make some up until its tokens end, and what is called has no use for them.

    Raises:
        ValueError: its schema is no JSON.
    """
    written = lean if tool.is_strict else relaxed
    source = written(_closed(tool.parameters or "{}"), tool_count)
    schema = json.loads(source) | {"type": "object"}
    # As text: of Python's objects it takes no whole number of more than 64 bits.
    return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=JSON_OPTIONS)


def _closed(source: str) -> str:
    schema = json.loads(source)
    if isinstance(schema, dict):
        close(schema)
        if schema.get("properties") == {} and not (OPENNESS | ADDITIONS) & schema.keys():
            schema["additionalProperties"] = False  # of a tool without arguments
    return json.dumps(schema)


def calls_grammar(
    envelope: Envelope,
    arguments: Mapping[str, str],
    *,
    is_single: bool,
    special_id: Callable[[str], int] | None = None,
) -> str:
    """Returns the grammar of one call of a tool, or of one and more in a row.

    Args:
        envelope: what stands around each.
        arguments: the grammars of the tools' arguments, by the tools' names.
        is_single: whether there is no more than one.
        special_id: returns a token's id; without it the marks that are tokens are their text.
    """
    numbers = range(len(arguments))
    rules = (
        f"call_{i}: {_terms(envelope.head(name), special_id)} @arguments_{i} closing"
        for i, name in zip(numbers, arguments, strict=True)
    )
    separator = json.dumps(envelope.separator) if envelope.separator else ""
    lark = (
        "start: call" if is_single else f"start: call ({separator} call)*",
        "call: " + " | ".join(f"call_{i}" for i in numbers),
        f"closing: {_terms(envelope.closing, special_id)}",
        *rules,
    )
    parts = (
        json.loads(grammar)["grammars"][0] | {"name": f"arguments_{i}"}
        for i, grammar in zip(numbers, arguments.values(), strict=True)
    )
    return json.dumps({"grammars": [{"name": "calls", "lark_grammar": "\n".join(lark)}, *parts]})


def _terms(pieces: Sequence[str | ControlToken], special_id: Callable[[str], int] | None) -> str:
    """Returns pieces of an envelope in Lark; texts that touch are one lexeme."""
    terms: list[str] = []
    texts: list[str] = []
    for piece in pieces:
        if isinstance(piece, str):
            texts.append(piece)
        elif special_id is None:
            texts.append(piece.content)
        else:
            terms += (*_lexeme(texts), f"<[{special_id(piece.content)}]>")
            texts = []
    return " ".join([*terms, *_lexeme(texts)])


def _lexeme(texts: Sequence[str]) -> list[str]:
    return [json.dumps("".join(texts))] if texts else []
