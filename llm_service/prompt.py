"""Prompts in their three forms, laid out: token ids with places for the rows of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, repeat

from llm_service.conversation import Ending, Message, conversation_pieces, ending_of
from llm_service.pieces import tokenized, with_images
from llm_service.templates import Template
from llm_service.tokenizer import IMAGE_CONTEXT, Tokenizer
from llm_service.tools.base import ToolDefinition
from llm_service.tools.create import tool_format
from protos.errors import InvalidArgumentError, PlaceholderMismatchError


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation, which the chat template lays out.

    Attributes:
        messages: the turns.
        ending: what follows them; None stands for what the last one suggests.
        tools: what the assistant may call.
    """

    messages: Sequence[Message]
    ending: Ending | None = None
    tools: tuple[ToolDefinition, ...] = ()

    @property
    def goes_on(self) -> bool:
        """Whether the answer continues a text."""
        is_continued = ending_of(self.messages, self.ending) is Ending.CONTINUED
        return is_continued and bool(self.messages and self.messages[-1].text)


@dataclass(frozen=True)
class TextPrompt:
    """Plain text.

    Attributes:
        text: the text; each "<image>" in it is an image's place where the request has any.
        has_images: whether it has.
        has_beginning: whether the beginning token comes first, where the model has one.
    """

    text: str
    has_images: bool = False
    has_beginning: bool = True

    @property
    def goes_on(self) -> bool:
        """Whether the answer continues a text."""
        return bool(self.text)


@dataclass(frozen=True)
class TokenPrompt:
    """Token ids as they are; each run of context tokens is an image's place."""

    token_ids: Sequence[int]

    @property
    def goes_on(self) -> bool:
        """Whether the answer continues a text: they mostly end where a turn begins."""
        return False


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

    def written_ids(self, row_counts: Sequence[int], context_id: int) -> list[int]:
        """Returns the ids with each image as its run of context tokens.

        Args:
            row_counts: rows of each image's embedding, in order, checked.
            context_id: the context token.
        """
        ids = list(self.segments[0])
        for row_count, segment in zip(row_counts, self.segments[1:], strict=True):
            ids.extend(repeat(context_id, row_count))
            ids.extend(segment)
        return ids

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


def prompt_layout(
    tokenizer: Tokenizer, template: Template, source: PromptSource, vocabulary_size: int
) -> PromptLayout:
    """Lays out any prompt; a long text takes seconds. Errors as of the three below."""
    match source:
        case ChatPrompt(messages, ending, tools):
            return chat_layout(tokenizer, template, messages, ending, tools)
        case TextPrompt():
            return text_layout(tokenizer, source)
        case TokenPrompt(token_ids):
            return token_layout(tokenizer, token_ids, vocabulary_size)


def chat_layout(
    tokenizer: Tokenizer,
    template: Template,
    messages: Sequence[Message],
    ending: Ending | None = None,
    tools: Sequence[ToolDefinition] = (),
) -> PromptLayout:
    """Lays out a conversation; errors as of conversation_pieces."""
    written = tool_format(tokenizer)
    ending = ending_of(messages, ending)
    pieces = conversation_pieces(template, written, messages, tools, ending)
    return PromptLayout("chat.messages", tokenized(tokenizer, pieces))


def text_layout(tokenizer: Tokenizer, prompt: TextPrompt) -> PromptLayout:
    """Lays out plain text."""
    if not prompt.has_beginning and tokenizer.has_token(prompt.text):
        # What asks so looks up an id; as text, a control token would be some other token's.
        return PromptLayout("text", ((tokenizer.special_id(prompt.text),),))
    pieces = with_images(prompt.text, -1 if prompt.has_images else 0)
    return PromptLayout("text", tokenized(tokenizer, pieces, has_beginning=prompt.has_beginning))


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
