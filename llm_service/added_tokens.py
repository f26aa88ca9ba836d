"""Tokens beside a tokenizer's trained vocabulary, as a checkpoint's files list and name them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protos.checkpoint.section import LARGEST_SIZE, Section, quoted

# The keys that name a token by what it is for; of SentencePiece with the names that the reference's
# classes give where a checkpoint has none.
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
SURROGATE = re.compile("[\ud800-\udfff]")
SENTENCEPIECE_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@dataclass(frozen=True)
class AddedToken:
    """A token beside the trained vocabulary.

    Attributes:
        id: its number.
        special: whether answers leave it out by default.
        lstrip: whether it takes the blanks before it.
        rstrip: whether it takes the blanks behind it.
        single_word: whether it is none within a word.
    """

    id: int
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True)
class TokenNames:
    """What tokenizer_config.json and special_tokens_map.json say of tokens.

    Attributes:
        named: contents by what they are for, e.g. "bos_token".
        special: contents of all that a file calls special.
    """

    named: Mapping[str, str]
    special: frozenset[str]

    @classmethod
    def read(cls, folder: Path, defaults: Mapping[str, str]) -> TokenNames:
        """Reads a folder; `defaults` holds names for where no file has the key."""
        named: dict[str, str] = {}
        special: set[str] = set()
        for file in ("special_tokens_map.json", "tokenizer_config.json"):
            section = section_of(folder / file)
            named |= {key: _named(section, key) for key in NAMED if key in section.values}
            listed = section.read("additional_special_tokens", list, [])
            special |= {_content(section, "additional_special_tokens", token) for token in listed}
        special |= {*named.values()}
        known = {key: content for key, content in {**defaults, **named}.items() if content}
        return cls(known, frozenset(content for content in special if content))


def section_of(file: Path) -> Section:
    """Returns a JSON file's object, empty where there is no such file."""
    return Section.of_file(file) if file.is_file() else Section(file, {})


def read_added_tokens(
    folder: Path, definition: Mapping[str, Any], names: TokenNames
) -> dict[str, AddedToken]:
    """Returns the tokens by content.

    Later sources win: a tokenizer.json copied from the base model lacks InternVL's nine tokens,
    added_tokens.json has them but says nothing of their flags. A token that is only named has its
    id from the vocabulary.
    """
    vocab = definition["model"]["vocab"]
    added = {
        content: AddedToken(vocab[content], special=True)
        for content in (*names.special, *names.named.values())
        if content in vocab
    }
    added |= dict(map(_added, _listed(Section(folder / "tokenizer.json", definition))))
    section = section_of(folder / "added_tokens.json")
    for content in section.values:
        special = content in names.special or not names.special
        added.setdefault(
            _text(section, content, content), AddedToken(_id(section, content), special)
        )
    decoder = section_of(folder / "tokenizer_config.json").section("added_tokens_decoder", {})
    return added | dict(
        _added(decoder.section(key), _number(decoder, key)) for key in decoder.values
    )


def bos_token(config: Section, definition: Mapping[str, Any], names: TokenNames) -> str | None:
    """Returns the token that begins every prompt, as the reference's tokenizer classes add it.

    Args:
        config: tokenizer_config.json.
        definition: the tokenizer as a tokenizer.json document.
        names: what tokens are for.

    Raises:
        CheckpointError: those classes would add a token elsewhere, too.
    """
    class_name = config.read("tokenizer_class", str, "")
    if class_name.startswith("Qwen2Tokenizer"):
        return None  # the class adds none, whatever add_bos_token says
    if config.read("add_eos_token", bool, False):
        raise config.error(
            "add_eos_token",
            "is True, which would end each prompt where the answer begins; set it to false",
        )
    is_fast = class_name == "PreTrainedTokenizerFast" or not config.has("add_bos_token")
    if is_fast and "post_processor" in definition:
        file = Section(config.file.parent / "tokenizer.json", definition)
        return _first_token(file)
    is_sentencepiece = definition["decoder"]["type"] != "ByteLevel"
    adds_bos = config.read("add_bos_token", bool, is_sentencepiece)
    return names.named.get("bos_token") if adds_bos else None


def _first_token(file: Section) -> str | None:
    """Returns the token that a tokenizer.json's post-processor puts before a text."""
    match list(_processed(file.values["post_processor"])):
        case [] | [{"Sequence": _}]:
            return None
        case [{"SpecialToken": {"id": str(token)}}, {"Sequence": _}]:
            return token
    raise file.error(
        "post_processor", "adds other tokens than one before the text, which is not served"
    )


def _processed(processor: Any) -> Iterator[Any]:
    """Yields what a post-processor makes of a text: the text, and the tokens around it."""
    match processor:
        case None | {"type": "ByteLevel"}:
            return
        case {"type": "Sequence", "processors": [*parts]}:
            for part in parts:
                yield from _processed(part)
        case {"type": "TemplateProcessing", "single": [*pieces]}:
            yield from pieces
        case _:
            yield processor


def _named(section: Section, key: str) -> str:
    return _content(section, key, section.values[key]) if section.has(key) else ""


def _content(section: Section, key: str, token: Any) -> str:
    return _text(section, key, token.get("content") if isinstance(token, dict) else token)


def _text(section: Section, key: str, text: Any) -> str:
    """Returns the content of a token, which has no half of a surrogate pair."""
    if not isinstance(text, str) or SURROGATE.search(text):
        raise section.error(key, f"is {quoted(text)}; it must be a token's text")
    return text


def _id(section: Section, key: str) -> int:
    token_id = section.read(key, int)
    if not 0 <= token_id < LARGEST_SIZE:
        raise section.error(key, f"is {quoted(token_id)}; it must be a token's id")
    return token_id


def _number(section: Section, key: str) -> int:
    """Returns the id that a key itself is."""
    if not key.isdecimal() or int(key[:10]) >= LARGEST_SIZE:
        raise section.error(key, "is no token's id")
    return int(key)


def _listed(document: Section) -> Iterator[Section]:
    tokens = document.read("added_tokens", list, [])
    numbered = Section(
        document.file, {str(number): token for number, token in enumerate(tokens)}, "added_tokens."
    )
    for key in numbered.values:
        yield numbered.section(key)


def _added(token: Section, token_id: int | None = None) -> tuple[str, AddedToken]:
    """Returns the content of a token and what is said of it; the id where it is no key of it."""
    flags = {
        name: token.read(name, bool, False)
        for name in ("special", "lstrip", "rstrip", "single_word")
    }
    number = _id(token, "id") if token_id is None else token_id
    return _text(token, "content", token.read("content", str)), AddedToken(number, **flags)
