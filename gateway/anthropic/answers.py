"""Anthropic's answers: the same events written as one message or as server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from pydantic_core import from_json

from gateway.anthropic.errors import error_body
from gateway.events import ChatEvent, Finished, TextDelta, ToolCallDelta, Usage
from gateway.memory import text_byte_count
from gateway.openai.answers import AnswerHead
from gateway.openai.pieces import JSONObject, in_ascii
from gateway.tools import CallIds
from protos.errors import ServiceError

ID_PREFIX = "toolu_"


class WholeMessage:
    """Collects an answer's events, and writes them as one message."""

    def __init__(self, head: AnswerHead) -> None:
        self._head = head
        self._texts: list[str] = []
        self._calls: dict[int, _Call] = {}
        self._finished: Finished | None = None
        self._usage: Usage | None = None
        self.held_byte_count = 0

    def add(self, event: ChatEvent) -> None:
        """Takes the next event."""
        if isinstance(event, Usage):
            self._usage = event
        elif isinstance(event, Finished):
            self._finished = event
        elif isinstance(event, TextDelta):
            self._texts.append(event.text)
            for piece in event.tool_calls:
                self._calls.setdefault(piece.call_index, _Call()).add(piece)
            arguments = (piece.arguments for piece in event.tool_calls)
            self.held_byte_count += text_byte_count([event.text, *arguments])

    def body(self) -> bytes:
        """Returns the JSON of the message.

        Raises:
            ServiceError: an event is missing.
        """
        if self._usage is None or self._finished is None:
            raise ServiceError("the LLM service left out the end or the usage")
        message = _message(self._head, _usage(self._usage))
        message |= _stop(self._finished, has_called=bool(self._calls))
        is_cut = self._finished.reason == "length" or self._finished.stop_string is not None
        blocks = ",".join(self._blocks(is_cut=is_cut))
        return f'{_text(message).removesuffix("}")},"content":[{blocks}]}}'.encode()

    def _blocks(self, *, is_cut: bool) -> Iterator[str]:
        if text := "".join(self._texts):
            yield _text(_text_block(text))
        ids = CallIds(ID_PREFIX)
        for index, call in sorted(self._calls.items()):
            head = _text(_call_head(ids.of(0, index), call.name))
            may_be_cut = is_cut and index == max(self._calls)
            yield f'{head.removesuffix("}")},"input":{call.input(may_be_cut=may_be_cut)}}}'


@dataclass
class _Call:
    """What has come of one call."""

    name: str = ""
    pieces: list[str] = field(default_factory=list)

    def add(self, piece: ToolCallDelta) -> None:
        self.name += piece.name
        self.pieces.append(piece.arguments)

    def input(self, *, may_be_cut: bool) -> str:
        """Returns the JSON of the arguments, as it came; of one that was cut, what is whole.

        What was cut where it is nested too deeply to be read, or holds no number, is nothing.
        """
        arguments = "".join(self.pieces) or "{}"
        if not may_be_cut:
            return arguments
        try:
            from_json(arguments)
        except ValueError:
            return _readable(arguments)
        return arguments


def _readable(cut: str) -> str:
    try:
        return _text(from_json(cut, allow_partial=True))
    except ValueError:
        return "{}"


class StreamedMessage:
    """Writes an answer's events as those of a message: its blocks begin and end one by one."""

    held_byte_count = 0

    def __init__(self, head: AnswerHead) -> None:
        self._head = head
        self._ids = CallIds(ID_PREFIX)
        self._has_begun = False
        self._has_called = False
        self._block_count = 0
        self._open: str | int | None = None  # the text, or a call's index
        self._finished: Finished | None = None

    def event(self, event: ChatEvent) -> bytes:
        """Returns what is sent for the next event; before the first, the message's begin."""
        begin = b"" if self._has_begun else self._begin(event)
        self._has_begun = True
        if isinstance(event, TextDelta):
            return begin + self._delta(event)
        if isinstance(event, Finished):
            self._finished = event
            return begin + self._close()
        return begin + (self._ending(event) if isinstance(event, Usage) else b"")

    def end(self) -> bytes:
        """Returns what ends a stream that has succeeded."""
        return _event("message_stop")

    def error(self, error: ServiceError) -> bytes:
        """Returns the event that ends a stream which failed."""
        return _event("error", error_body(error, self._head.request_id))

    def _begin(self, event: ChatEvent) -> bytes:
        count = event.prompt_token_count if isinstance(event, TextDelta) else None
        usage = Usage(count or 0, 0, 0, 0)  # the rest is told at the end
        message = _message(self._head, _usage(usage)) | {"content": []}
        return _event("message_start", {"message": message}) + _event("ping")

    def _delta(self, event: TextDelta) -> bytes:
        data = b""
        if event.text:
            data += self._block("text", _text_block(""))
            data += self._block_delta({"type": "text_delta", "text": event.text})
        for piece in event.tool_calls:
            data += self._call_piece(piece)
        return data

    def _call_piece(self, piece: ToolCallDelta) -> bytes:
        self._has_called = True
        head = _call_head(self._ids.of(0, piece.call_index), piece.name)
        begin = self._block(piece.call_index, head | {"input": {}})
        delta = {"type": "input_json_delta", "partial_json": piece.arguments}
        return begin + (self._block_delta(delta) if piece.arguments else b"")

    def _block(self, what: str | int, block: JSONObject) -> bytes:
        """Returns what opens a block, unless it is open already, and ends the one before it."""
        if self._open == what:
            return b""
        end = self._close()
        self._open = what
        return end + _event(
            "content_block_start", {"index": self._block_count, "content_block": block}
        )

    def _block_delta(self, delta: JSONObject) -> bytes:
        return _event("content_block_delta", {"index": self._block_count, "delta": delta})

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        self._block_count += 1
        return _event("content_block_stop", {"index": self._block_count - 1})

    def _ending(self, usage: Usage) -> bytes:
        if self._finished is None:
            raise ServiceError("the LLM service left out the end")
        delta = _stop(self._finished, has_called=self._has_called)
        return _event("message_delta", {"delta": delta, "usage": _usage(usage)})


def _message(head: AnswerHead, usage: JSONObject) -> JSONObject:
    """Returns the members of a message but its content."""
    return {
        "id": f"msg_{head.request_id}",
        "type": "message",
        "role": "assistant",
        "model": head.model,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }


def _text_block(text: str) -> JSONObject:
    return {"type": "text", "text": text}


def _call_head(call_id: str, name: str) -> JSONObject:
    return {"type": "tool_use", "id": call_id, "name": name}


def _stop(finished: Finished, *, has_called: bool) -> JSONObject:
    """Returns why a message ended, as Anthropic says it."""
    if finished.reason == "length":
        reason = "max_tokens"
    elif finished.stop_string is not None:
        reason = "stop_sequence"
    else:
        reason = "tool_use" if has_called else "end_turn"
    return {"stop_reason": reason, "stop_sequence": finished.stop_string}


def _usage(usage: Usage) -> JSONObject:
    """Returns the counts; the tokens whose KV was reused are not among the input's."""
    return {
        "input_tokens": usage.prompt_token_count - usage.cached_token_count,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_token_count,
        "output_tokens": usage.output_token_count,
    }


def _text(value: JSONObject) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _event(kind: str, members: JSONObject | None = None) -> bytes:
    data = in_ascii({"type": kind, **(members or {})})
    return f"event: {kind}\ndata: {data}\n\n".encode()
