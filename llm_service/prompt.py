"""The chat template and the places of images: messages to token ids with virtual tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import groupby

from llm_service.tokenizer import (
    IMAGE_CONTEXT,
    IMAGE_END,
    IMAGE_START,
    MESSAGE_END,
    MESSAGE_START,
    Tokenizer,
)
from protos.errors import InvalidArgumentError, PlaceholderMismatchError

PLACEHOLDER = "<image>"
# OpenGVLab/InternVL, internvl_chat/internvl/conversation.py, template "internvl2_5".
DEFAULT_SYSTEM_TEXT = (
    "你是书生·万象，英文名是InternVL，"
    "是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)


class Role(str, Enum):
    """Who speaks; the values are the template's words."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        role: who speaks.
        text: what is said; in a user turn each "<image>" stands for the turn's next image.
        image_count: images of this turn.
    """

    role: Role
    text: str
    image_count: int = 0


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation, which the chat template lays out."""

    messages: Sequence[Message]


@dataclass(frozen=True)
class TextPrompt:
    """Plain text; each "<image>" in it is an image's place."""

    text: str


@dataclass(frozen=True)
class TokenPrompt:
    """Token ids as they are; each run of context tokens is an image's place."""

    token_ids: Sequence[int]


PromptSource = ChatPrompt | TextPrompt | TokenPrompt


@dataclass(frozen=True)
class PromptLayout:
    """A prompt with its text tokenized and its images still open.

    Attributes:
        field: path of the contract's field that holds the prompt, for refusals.
        segments: token ids before, between and after the images: one more than images.
        row_counts: rows of each image if the prompt itself says them, else None.
    """

    field: str
    segments: tuple[tuple[int, ...], ...]
    row_counts: tuple[int, ...] | None = None

    @property
    def image_count(self) -> int:
        """Images in the prompt."""
        return len(self.segments) - 1

    @property
    def text_token_count(self) -> int:
        """Tokens that are not virtual."""
        return sum(map(len, self.segments))

    def check_image_count(self, image_count: int, field: str) -> None:
        """Compares the prompt's places for images with the images, which `field` holds.

        Raises:
            InvalidArgumentError: they differ.
        """
        if self.image_count != image_count:
            raise InvalidArgumentError(
                f"the prompt has places for {self.image_count} images, but the request has"
                f" {image_count}",
                field=field,
            )

    def check_row_counts(self, row_counts: Sequence[int]) -> None:
        """Compares the images' rows with what the prompt itself says of them.

        Raises:
            PlaceholderMismatchError: they differ.
        """
        if self.row_counts not in (None, tuple(row_counts)):
            raise PlaceholderMismatchError(
                f"the prompt has runs of {list(self.row_counts or ())} context tokens, but its"
                f" images have {list(row_counts)} rows",
                field=self.field,
            )

    def token_ids(self, row_counts: Sequence[int], vocabulary_size: int) -> list[int]:
        """Returns the ids with each image as its run of virtual tokens.

        A virtual token is vocabulary_size + row; rows count on through all images.

        Args:
            row_counts: rows of each image's embedding, in order.
            vocabulary_size: size of the model's vocabulary.

        Raises:
            PlaceholderMismatchError: the prompt itself says other counts.
        """
        self.check_row_counts(row_counts)
        ids = list(self.segments[0])
        row = vocabulary_size
        for row_count, segment in zip(row_counts, self.segments[1:], strict=True):
            ids.extend(range(row, row + row_count))
            ids.extend(segment)
            row += row_count
        return ids


def prompt_layout(tokenizer: Tokenizer, source: PromptSource, vocabulary_size: int) -> PromptLayout:
    """Lays out any prompt; a long text takes seconds. Errors as of the three below."""
    match source:
        case ChatPrompt(messages):
            return chat_layout(tokenizer, messages)
        case TextPrompt(text):
            return text_layout(tokenizer, text)
        case TokenPrompt(token_ids):
            return token_layout(tokenizer, token_ids, vocabulary_size)


def chat_layout(tokenizer: Tokenizer, messages: Sequence[Message]) -> PromptLayout:
    """Lays out a conversation by the template `internvl2_5`, up to the assistant's turn.

    Raises:
        InvalidArgumentError: no message, the last is not the user's, or a system message that is
            not the first.
        PlaceholderMismatchError: a user turn has more placeholders than images.
    """
    _check_roles(messages)
    turns = [(message.role, _placed(index, message)) for index, message in enumerate(messages)]
    if messages[0].role is not Role.SYSTEM:
        turns.insert(0, (Role.SYSTEM, DEFAULT_SYSTEM_TEXT))
    parts = [part for role, text in turns for part in _turn(role, text)]
    parts += [_Token(MESSAGE_START), f"{Role.ASSISTANT.value}\n"]
    return _assemble("chat.messages", tokenizer, parts)


def text_layout(tokenizer: Tokenizer, text: str) -> PromptLayout:
    """Lays out plain text; each "<image>" in it is an image's place."""
    return _assemble("text", tokenizer, list(_with_images(text)))


def token_layout(tokenizer: Tokenizer, ids: Sequence[int], vocabulary_size: int) -> PromptLayout:
    """Lays out given token ids; each run of context tokens is an image's place.

    Raises:
        InvalidArgumentError: an id outside the vocabulary.
    """
    for index, token_id in enumerate(ids):
        if not 0 <= token_id < vocabulary_size:
            raise InvalidArgumentError(
                f"a token id is {token_id}; it must be 0 to {vocabulary_size - 1}",
                field=f"token_ids.ids[{index}]",
            )
    context_id = tokenizer.special_id(IMAGE_CONTEXT)
    segments: list[list[int]] = [[]]
    row_counts = []
    for is_context, run in groupby(ids, lambda token_id: token_id == context_id):
        if is_context:
            row_counts.append(len(list(run)))
            segments.append([])
        else:
            segments[-1].extend(run)
    return PromptLayout("token_ids.ids", tuple(map(tuple, segments)), tuple(row_counts))


@dataclass(frozen=True)
class _Token:
    """A special token, which enters a prompt by its id alone."""

    content: str


class _Image:
    """The place of an image's rows."""


_Part = str | _Token | _Image


def _check_roles(messages: Sequence[Message]) -> None:
    if not messages:
        raise InvalidArgumentError(
            "the conversation has 0 messages; it must have at least 1", field="chat.messages"
        )
    last = len(messages) - 1
    if messages[last].role is not Role.USER:
        raise InvalidArgumentError(
            f"the last message is the {messages[last].role.value}'s; it must be the user's",
            field=f"chat.messages[{last}].role",
        )
    for index, message in enumerate(messages):
        if message.role is Role.SYSTEM and index > 0:
            raise InvalidArgumentError(
                f"message {index + 1} is a system message; only the first may be one",
                field=f"chat.messages[{index}].role",
            )


def _turn(role: Role, text: str) -> Iterator[_Part]:
    yield _Token(MESSAGE_START)
    yield f"{role.value}\n"
    yield from _with_images(text) if role is Role.USER else (text,)
    yield _Token(MESSAGE_END)
    yield "\n"


def _placed(index: int, message: Message) -> str:
    """Returns a turn's text with a placeholder for each of its images.

    An image without its own placeholder stands before the text with a line feed, as the reference's
    chat() does for its one image.
    """
    if message.role is not Role.USER:
        return message.text
    written = message.text.count(PLACEHOLDER)
    if written > message.image_count:
        raise PlaceholderMismatchError(
            f"the text has {written} {PLACEHOLDER} placeholders, but the message has"
            f" {message.image_count} images",
            field=f"chat.messages[{index}].parts",
        )
    return f"{PLACEHOLDER}\n" * (message.image_count - written) + message.text


def _with_images(text: str) -> Iterator[_Part]:
    before, *others = text.split(PLACEHOLDER)
    yield before
    for other in others:
        yield from (_Token(IMAGE_START), _Image(), _Token(IMAGE_END), other)


def _assemble(field: str, tokenizer: Tokenizer, parts: Sequence[_Part]) -> PromptLayout:
    """Tokenizes the parts; texts that touch are one text, as merges may cross their border."""
    segments: list[list[int]] = [[] if tokenizer.bos_id is None else [tokenizer.bos_id]]
    for is_text, run in groupby(parts, lambda part: isinstance(part, str)):
        if is_text:
            segments[-1].extend(tokenizer.encode("".join(map(str, run))))
            continue
        for part in run:
            if isinstance(part, _Token):
                segments[-1].append(tokenizer.special_id(part.content))
            else:
                segments.append([])
    return PromptLayout(field, tuple(map(tuple, segments)))
