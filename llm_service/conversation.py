"""Conversations, and how a chat template lays them out.

OpenGVLab/InternVL, internvl_chat/internvl/conversation.py. A template has one system text, and
turns of user and assistant in any order; what it lacks is laid out as the language models' own
templates do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import groupby, takewhile

from llm_service.pieces import (
    PLACEHOLDER,
    ControlToken,
    ImagePart,
    Piece,
    Turn,
    image_place,
    lines,
    with_images,
)
from llm_service.templates import Template
from llm_service.tokenizer import MESSAGE_START
from llm_service.tools.base import ToolCall, ToolDefinition, ToolFormat
from protos.errors import InvalidArgumentError, PlaceholderMismatchError


class Role(str, Enum):
    """Who speaks; the values are the template's words, but for TOOL, which speaks as the user."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Ending(Enum):
    """What follows the last message: the assistant's turn, the same turn's rest, or nothing."""

    NEW_TURN = "new turn"
    CONTINUED = "continued"
    CLOSED = "closed"


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        role: who speaks.
        parts: texts and images in their order; only the user's has images.
        tool_calls: calls that follow the text; only the assistant's has any.
    """

    role: Role
    parts: tuple[str | ImagePart, ...]
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def texts(self) -> list[str]:
        return [part for part in self.parts if isinstance(part, str)]

    @property
    def text(self) -> str:
        """All texts."""
        return "\n".join(self.texts)

    @property
    def image_count(self) -> int:
        return len(self.parts) - len(self.texts)


def ending_of(messages: Sequence[Message], ending: Ending | None) -> Ending:
    """Returns what follows the last message; None stands for what its role suggests."""
    if ending is not None:
        return ending
    answers = bool(messages) and messages[-1].role is Role.ASSISTANT
    return Ending.CONTINUED if answers else Ending.NEW_TURN


def conversation_pieces(
    template: Template,
    tool_format: ToolFormat,
    messages: Sequence[Message],
    tools: Sequence[ToolDefinition],
    ending: Ending,
) -> list[Piece]:
    """Lays out a conversation.

    Args:
        template: the checkpoint's.
        tool_format: how tools and their calls are written.
        messages: the turns.
        tools: what the assistant may call.
        ending: what follows the last message.

    Raises:
        InvalidArgumentError: there is no message, or the last is not one that can be continued.
        PlaceholderMismatchError: the last user turn has more placeholders than images.
    """
    if not messages:
        raise InvalidArgumentError(
            "the conversation has 0 messages; it must have at least 1", field="chat.messages"
        )
    if ending is Ending.CONTINUED:
        _check_continuable(messages)
    pieces: list[Piece] = []
    end: list[Piece] = []
    for turn in _turns(template, tool_format, messages, tools):
        start, next_end = turn.laid_out(template.turn_separator)
        pieces += end + start
        end = next_end
    if ending is not Ending.CONTINUED:
        pieces += end
    if ending is Ending.NEW_TURN:
        pieces += (ControlToken(MESSAGE_START), f"{Role.ASSISTANT.value}\n")
    return pieces


def _check_continuable(messages: Sequence[Message]) -> None:
    index, last = len(messages) - 1, messages[-1]
    if last.role not in (Role.USER, Role.ASSISTANT):
        raise InvalidArgumentError(
            f"the last message is the {last.role.value}'s, which cannot be continued; let the"
            " assistant's turn begin, or end with a message of the user or the assistant",
            field="chat.ending",
        )
    if last.tool_calls:
        raise InvalidArgumentError(
            "the last message calls tools and cannot be continued; send what they returned after"
            " it, or let a new turn begin",
            field=f"chat.messages[{index}].tool_calls",
        )


def _turns(
    template: Template,
    tool_format: ToolFormat,
    messages: Sequence[Message],
    tools: Sequence[ToolDefinition],
) -> Iterator[Turn]:
    leading = [message.text for message in takewhile(_is_system, messages)]
    system_text = "\n\n".join(leading) if leading else template.system_text
    if tools:
        yield from tool_format.system_turns(system_text, tools)
    else:
        yield _turn(Role.SYSTEM, [system_text], always_ends=True)
    users = [index for index, message in enumerate(messages) if message.role is Role.USER]
    others = list(enumerate(messages))[len(leading) :]
    for is_tool, run in groupby(others, lambda entry: entry[1].role is Role.TOOL):
        if is_tool:
            yield from tool_format.response_turns([message.text for _, message in run])
            continue
        for index, message in run:
            if message.role is Role.USER:
                is_last = index == users[-1]
                yield _turn(Role.USER, _user_pieces(index, message, is_last=is_last))
            elif message.tool_calls:
                said = tool_format.answer_pieces(message.text, message.tool_calls)
                yield _turn(message.role, said)
            else:
                yield _turn(message.role, [message.text])


def _turn(role: Role, pieces: Iterable[Piece], *, always_ends: bool = False) -> Turn:
    return Turn((f"{role.value}\n",), tuple(pieces), always_ends)


def _is_system(message: Message) -> bool:
    return message.role is Role.SYSTEM


def _user_pieces(index: int, message: Message, *, is_last: bool) -> Iterator[Piece]:
    """Yields a turn's texts and images.

    An image without its own placeholder stands before the text with a line feed, as the reference's
    chat() does for its one image; among several texts without placeholders it stands in its place.
    """
    text, image_count = message.text, message.image_count
    written = text.count(PLACEHOLDER)
    if image_count and not written and len(message.texts) > 1:
        return lines([part] if isinstance(part, str) else image_place() for part in message.parts)
    if is_last and written > image_count > 0:
        raise PlaceholderMismatchError(
            f"the text has {written} {PLACEHOLDER} placeholders, but the message has"
            f" {image_count} images; send an image for each, or write fewer of them",
            field=f"chat.messages[{index}].parts",
        )
    missing = f"{PLACEHOLDER}\n" * (image_count - written)
    return with_images(missing + text, image_count)
