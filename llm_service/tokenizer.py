"""The checkpoint's tokenizer: text to ids, special tokens by name, ids to bytes.

Typed text is encoded as the reference's tokenizers do: `<ref>`, `<think>` and whatever a fine-tune
added become their tokens. Control tokens alone enter a prompt only by their ids (`special_id`):
`<|im_end|>` in a question is ten characters, not the end of a turn.

The checkpoint folder has one of
- `tokenizer.json`;
- `vocab.json` and `merges.txt` (the Qwen2 sizes);
- `tokenizer.model` (SentencePiece, the InternLM2 sizes);
and the special tokens in any of `tokenizer.json`, `added_tokens.json`, `tokenizer_config.json`. No
Python code of the checkpoint is ever run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers
from tokenizers.models import BPE

from llm_service.added_tokens import (
    SENTENCEPIECE_NAMES,
    AddedToken,
    TokenNames,
    bos_token,
    read_added_tokens,
    section_of,
)
from llm_service.vocabularies import SPACE_MARK, byte_level_definition, sentencepiece_definition
from protos.checkpoint.section import CheckpointError, Section

IMAGE_START = "<img>"
IMAGE_END = "</img>"
IMAGE_CONTEXT = "<IMG_CONTEXT>"
MESSAGE_START = "<|im_start|>"
MESSAGE_END = "<|im_end|>"

TEMPLATE_TOKENS = (MESSAGE_START, MESSAGE_END, IMAGE_START, IMAGE_END, IMAGE_CONTEXT)
# What begins or ends turns in the chat formats that the language models brought with them: of all,
# InternLM2's agents, Yi, Llama 3. No text becomes one of these, be the template what it may: typed
# by a user, it would be a turn that nobody gave them.
CHAT_MARKERS = (
    "<|endoftext|>",
    *("<|plugin|>", "<|interpreter|>", "<|action_start|>", "<|action_end|>"),
    *("<|startoftext|>", "<|im_sep|>"),
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "<|eom_id|>"),
)
QWEN2_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast")
MODEL_OPTIONS = (
    *("unk_token", "continuing_subword_prefix", "end_of_word_suffix"),
    *("fuse_unk", "byte_fallback", "ignore_merges"),
)
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenizer:
    """Encodes text and decodes ids to bytes.

    Attributes:
        bos_id: the token that begins every prompt; None where the model has none (Qwen2).
        drops_first_space: whether a decoded text loses one leading space (SentencePiece).
        highest_id: the largest id of a token.
        named: tokens by what the checkpoint calls them, e.g. "eos_token".
        typed_tokens: added tokens that typed text becomes, e.g. "<ref>".
        fingerprint: SHA-256 of vocabulary, merges and added tokens.
    """

    def __init__(
        self,
        definition: dict[str, Any],
        added: Mapping[str, AddedToken],
        bos_token: str | None,
        named: Mapping[str, str] = MappingProxyType({}),
        source: Path | None = None,
    ) -> None:
        """Builds it.

        Args:
            definition: a `tokenizer.json` document.
            added: the added tokens by content.
            bos_token: what begins every prompt.
            named: added tokens that are for control by what they are for, e.g. "bos_token".
            source: the file that errors name.

        Raises:
            CheckpointError: bos_token is missing, or a token has a flag that we do not serve.
        """
        self._added = dict(added)
        self._added_contents = {token.id: content for content, token in added.items()}
        self._special_ids = {token.id for token in added.values() if token.special}
        self._byte_level = definition["decoder"]["type"] == "ByteLevel"
        self._source = source
        self.named = named
        typed = self._typed_tokens(
            {*TEMPLATE_TOKENS, *CHAT_MARKERS, *named.values(), bos_token or ""}
        )
        plain = _without_control_tokens(definition, set(self._added_contents), typed)
        self._plain = _tokenizer(plain, source)
        self._typed = self._with_typed_tokens(typed)
        self.typed_tokens = tuple(typed)
        self.drops_first_space = not self._byte_level
        self.bos_id = self.special_id(bos_token) if bos_token else None
        self.highest_id = max([*self._added_contents, *definition["model"]["vocab"].values()])
        facts = json.dumps(
            [json.dumps(plain), sorted((c, t.id) for c, t in added.items()), bos_token]
        )
        self.fingerprint = hashlib.sha256(facts.encode()).digest()

    @classmethod
    def from_checkpoint(cls, folder: Path) -> Tokenizer:
        """Reads the tokenizer of a checkpoint folder.

        Raises:
            CheckpointError: no known file is there, one cannot be read or is of a kind that we do
                not serve, or a token that InternVL needs is missing.
        """
        config = section_of(folder / "tokenizer_config.json")
        if config.read("split_special_tokens", bool, default=False):
            raise config.error("split_special_tokens", "is true; InternVL needs its tokens whole")
        source = _source(folder)
        try:
            definition = _definition(source, config)
            is_sentencepiece = definition["decoder"]["type"] != "ByteLevel"
            names = TokenNames.read(folder, SENTENCEPIECE_NAMES if is_sentencepiece else {})
            added = read_added_tokens(folder, definition, names)
            _check_template_tokens(folder, added)
            bos = bos_token(config, definition, names)
            if bos is not None and bos not in added:
                raise config.error("bos_token", f"is {bos!r}, which the tokenizer does not have")
            return cls(definition, added, bos, names.named, source)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(f"{source}: the tokenizer is damaged: {error!r}") from error

    def encode(self, text: str) -> list[int]:
        """Returns the ids of typed text: tags and the like are tokens, control tokens are text.

        No beginning token.
        """
        return _ids(self._typed, text)

    def encode_plain(self, text: str) -> list[int]:
        """Returns the ids of text in which no added token is one."""
        return _ids(self._plain, text)

    def special_id(self, content: str) -> int:
        """Returns the id of an added token, e.g. "<|im_end|>".

        Raises:
            CheckpointError: the tokenizer has no such token.
        """
        if not self.has_token(content):
            raise CheckpointError(f"the tokenizer has no token {content}")
        return self._added[content].id

    def has_token(self, content: str) -> bool:
        """Returns whether there is such an added token."""
        return content in self._added

    @property
    def special_ids(self) -> frozenset[int]:
        """The special tokens, which answers leave out by default."""
        return frozenset(self._special_ids)

    def is_special(self, token_id: int) -> bool:
        """Returns whether an id is a special token, which answers leave out by default."""
        return token_id in self._special_ids

    def token_bytes(self, token_id: int) -> bytes:
        """Returns the bytes that a token stands for; empty for an id outside the vocabulary."""
        if token_id in self._added_contents:
            return self._added_contents[token_id].encode()
        piece: str | None = self._plain.id_to_token(token_id)
        if piece is None:
            return b""
        if self._byte_level:
            return bytes(BYTE_OF_CHARACTER[character] for character in piece)
        if match := BYTE_PIECE.fullmatch(piece):
            return bytes([int(match[1], 16)])
        return piece.replace(SPACE_MARK, " ").encode()

    def _typed_tokens(self, control: Collection[str]) -> dict[str, AddedToken]:
        """Returns the added tokens that text becomes."""
        control_ids = {self._added[content].id for content in control if content in self._added}
        typed = {
            content: token
            for content, token in self._added.items()
            if content and token.id not in control_ids
        }
        for content, token in typed.items():
            if token.single_word:
                raise CheckpointError(
                    f"{self._source}: the added token {content} has single_word, which is not"
                    " served"
                )
        return typed

    def _with_typed_tokens(self, typed: Mapping[str, AddedToken]) -> tokenizers.Tokenizer:
        # The two share the vocabulary, which takes a second to read and 100 MB.
        tokenizer = tokenizers.Tokenizer(self._plain.model)
        tokenizer.normalizer = self._plain.normalizer
        tokenizer.pre_tokenizer = self._plain.pre_tokenizer
        # Qwen2's slow tokenizer normalises a text before it looks for tokens; SentencePiece is
        # given what lies between them.
        tokenizer.add_tokens(
            [
                tokenizers.AddedToken(
                    content,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=self._byte_level,
                )
                for content, token in typed.items()
            ]
        )
        return tokenizer


def _ids(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    # encode would do, but of the two only encode_batch lets go of the interpreter's lock: a long
    # text on another thread must not stop the event loop.
    (encoding,) = tokenizer.encode_batch([text], add_special_tokens=False)
    ids: list[int] = encoding.ids
    return ids


def _byte_alphabet() -> dict[str, int]:
    # GPT-2's byte alphabet: printable Latin-1 characters stand for themselves, the other bytes for
    # characters from U+0100 on (openai/gpt-2, encoder.py, bytes_to_unicode).
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    shifted = {chr(0x100 + index): byte for index, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | shifted


BYTE_OF_CHARACTER = _byte_alphabet()


def _source(folder: Path) -> Path:
    """Returns the file with the vocabulary."""
    names = ["tokenizer.json", "tokenizer.model"]
    if (folder / "merges.txt").is_file():
        names.insert(1, "vocab.json")
    found = (folder / name for name in names if (folder / name).is_file())
    if (source := next(found, None)) is None:
        raise CheckpointError(
            f"{folder} has no tokenizer: expected tokenizer.json, or vocab.json and merges.txt,"
            " or tokenizer.model"
        )
    return source


def _definition(source: Path, config: Section) -> dict[str, Any]:
    """Returns the tokenizer as a tokenizer.json document."""
    match source.name:
        case "tokenizer.json":
            document = Section.of_file(source)
            _check_document(document)
            return {"added_tokens": [], **document.values}
        case "vocab.json":
            if config.has("tokenizer_class"):
                config.one_of("tokenizer_class", QWEN2_CLASSES)
            return byte_level_definition(source.parent)
        case _:
            return sentencepiece_definition(source)


def _check_document(document: Section) -> None:
    """Refuses what is not as the tokens of the vocabulary are read here."""
    document.section("decoder").read("type", str)
    model = document.section("model")
    model.read("vocab", dict)
    model.read("merges", list)


def _check_template_tokens(folder: Path, added: Mapping[str, AddedToken]) -> None:
    for content in TEMPLATE_TOKENS:
        if content not in added:
            raise CheckpointError(
                f"{folder}: the tokenizer has no token {content}, which InternVL's prompts need"
            )
        if added[content].lstrip or added[content].rstrip:
            raise CheckpointError(
                f"{folder}: the token {content} has lstrip or rstrip, which is not served"
            )


def _tokenizer(definition: dict[str, Any], source: Path | None) -> tokenizers.Tokenizer:
    model = definition["model"]
    empty = definition | {"model": model | {"vocab": {}, "merges": []}}
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(empty))
        tokenizer.model = _filled(tokenizer.model, model["vocab"], model["merges"])
    except Exception as error:  # the library has no class of its own
        raise CheckpointError(f"{source}: the tokenizer cannot be read: {error}") from error
    return tokenizer


def _filled(model: BPE, vocab: dict[str, int], merges: Sequence[tuple[str, str]]) -> BPE:
    """Returns an empty model's like with a vocabulary, in half of the time that JSON takes."""
    options = {name: getattr(model, name) for name in MODEL_OPTIONS}
    return BPE(vocab, merges, **{name: value for name, value in options.items() if value})


def _without_control_tokens(
    definition: dict[str, Any], added_ids: set[int], typed: Mapping[str, AddedToken]
) -> dict[str, Any]:
    """Returns a tokenizer.json document whose model cannot make an added token of text.

    Dropping the added-token list is not enough: InternLM2's merges build "<s>" from "<s" and ">".
    The tokens that may be typed are in its vocabulary, where no merge leads to them.
    """
    model = definition["model"]
    kept = {
        piece: number
        for piece, number in model["vocab"].items()
        if number not in added_ids or piece == model.get("unk_token")
    }
    unmade = {*added_ids, *(model["vocab"].get(content) for content in typed)}
    pairs = (pair if isinstance(pair, list) else pair.split(" ", 1) for pair in model["merges"])
    merges = [
        (left, right)
        for left, right in pairs
        if left in kept and right in kept and model["vocab"][left + right] not in unmade
    ]
    vocab = kept | {content: token.id for content, token in typed.items()}
    return definition | {
        # With a dropout it would be encoded otherwise each time.
        "model": model | {"vocab": vocab, "merges": merges, "dropout": None},
        "added_tokens": [],
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }
