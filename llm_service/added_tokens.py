"""Tokens beside a tokenizer's trained vocabulary, as a checkpoint's files list and name them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protos.checkpoint.section import Section

# The keys that name a token by what it is for; of SentencePiece with the names that the reference's
# classes give where a checkpoint has none.
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
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
        named: dict[str, str | None] = {}
        special: set[str | None] = set()
        for file in ("special_tokens_map.json", "tokenizer_config.json"):
            section = section_of(folder / file)
            named |= {key: _content(section.values[key]) for key in NAMED if key in section.values}
            special |= {*map(_content, section.read("additional_special_tokens", list, []))}
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
    added |= {token["content"]: _added(token, token["id"]) for token in definition["added_tokens"]}
    for content, token_id in section_of(folder / "added_tokens.json").values.items():
        special = content in names.special or not names.special
        added.setdefault(content, AddedToken(token_id, special))
    config = section_of(folder / "tokenizer_config.json")
    for token_id, token in config.read("added_tokens_decoder", dict, {}).items():
        added[token["content"]] = _added(token, int(token_id))
    return added


def bos_token(config: Section, definition: Mapping[str, Any], names: TokenNames) -> str | None:
    """Returns the token that begins every prompt, as the reference's tokenizer classes add it.

    Args:
        config: tokenizer_config.json.
        definition: the tokenizer as a tokenizer.json document.
        names: what tokens are for.
    """
    class_name = config.read("tokenizer_class", str, "")
    if class_name.startswith("Qwen2Tokenizer"):
        return None  # the class adds none, whatever add_bos_token says
    is_fast = class_name == "PreTrainedTokenizerFast" or not config.has("add_bos_token")
    if is_fast and "post_processor" in definition:
        return next(_first_tokens(definition["post_processor"]), None)
    is_sentencepiece = definition["decoder"]["type"] != "ByteLevel"
    adds_bos = config.read("add_bos_token", bool, is_sentencepiece)
    return names.named.get("bos_token") if adds_bos else None


def _first_tokens(processor: Mapping[str, Any] | None) -> Iterator[str]:
    """Yields the special token with which a tokenizer.json's post-processor begins a text."""
    if processor is None:
        return
    if processor["type"] == "Sequence":
        for part in processor["processors"]:
            yield from _first_tokens(part)
    elif processor["type"] == "TemplateProcessing" and "SpecialToken" in processor["single"][0]:
        yield processor["single"][0]["SpecialToken"]["id"]


def _content(token: Any) -> str | None:
    content: str | None = token["content"] if isinstance(token, dict) else token
    return content


def _added(token: Mapping[str, Any], token_id: int) -> AddedToken:
    flags = {name: token.get(name, False) for name in ("special", "lstrip", "rstrip")}
    return AddedToken(token_id, **flags, single_word=token.get("single_word", False))
