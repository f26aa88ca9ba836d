"""OpenAI's Responses: an answer's events written as one object, or as the events of a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from gateway.events import (
    ChatEvent,
    Finished,
    FinishReason,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from gateway.memory import text_byte_count
from gateway.openai.answers import AnswerHead, token_with_top
from gateway.openai.errors import error_body, http_status
from gateway.openai.pieces import in_ascii
from gateway.tools import CallIds
from protos.errors import ServiceError

Status = Literal["in_progress", "completed", "incomplete", "failed"]
STATUSES: dict[FinishReason, Status] = {"stop": "completed", "length": "incomplete"}


@dataclass
class OutputMessage:
    """The text of an answer. Log probabilities are JSON at once, as those of a chat are."""

    item_id: str
    status: Status = "in_progress"
    texts: list[str] = field(default_factory=list)
    logprobs: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What there is of it."""
        return "".join(self.texts)

    def begun(self) -> str:
        """Returns the JSON of the item before anything is in it."""
        return self._json("in_progress", "")

    def json(self) -> str:
        """Returns the JSON of the item."""
        return self._json(self.status, text_part(self.text, self.logprobs))

    def _json(self, status: Status, content: str) -> str:
        return (
            f'{{"type":"message","id":"{self.item_id}","status":"{status}",'
            f'"role":"assistant","content":[{content}]}}'
        )


@dataclass
class OutputCall:
    """A call of a tool."""

    item_id: str
    call_id: str
    name: str
    status: Status = "in_progress"
    pieces: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """What there is of them."""
        return "".join(self.pieces)

    def begun(self) -> str:
        """Returns the JSON of the item before anything is in it."""
        return self._json("in_progress", "")

    def json(self) -> str:
        """Returns the JSON of the item."""
        return self._json(self.status, self.arguments)

    def _json(self, status: Status, arguments: str) -> str:
        return in_ascii(
            {
                "type": "function_call",
                "id": self.item_id,
                "call_id": self.call_id,
                "status": status,
                "name": self.name,
                "arguments": arguments,
            }
        )


class ResponseBody:
    """A response as it grows.

    Attributes:
        items: at most one message, and calls of tools after it; at the end there is one at least.
        status: of the whole.
        usage: what it has cost, once it is known.
        held_byte_count: bytes of texts, calls and log probabilities.
    """

    def __init__(self, head: AnswerHead, echo: str) -> None:
        """`echo` has the members of the object that come from the request, as JSON."""
        self.items: list[OutputMessage | OutputCall] = []
        self.status: Status = "in_progress"
        self.usage: Usage | None = None
        self.held_byte_count = 0
        self._head = head
        self._echo = echo
        self._call_ids, self._item_ids = CallIds(), CallIds("fc_")
        self._call_index = -1
        self._waiting_logprobs: list[str] = []

    def add_text(self, text: str, logprobs: tuple[TokenLogprob, ...] = ()) -> list[str]:
        """Takes new text, and returns the JSON of the log probabilities that go with it.

        Those that come before all text wait for it; those of calls have no place.
        """
        if self._call_index >= 0:
            return []
        new_logprobs = [in_ascii(token_with_top(logprob)) for logprob in logprobs]
        self._waiting_logprobs += new_logprobs
        self.held_byte_count += text_byte_count([text, *new_logprobs])
        if text and not self.items:
            self._begin_message()
        if not self.items:
            return []
        message = self.items[-1]
        assert isinstance(message, OutputMessage)
        ready, self._waiting_logprobs = self._waiting_logprobs, []
        message.texts.append(text)
        message.logprobs += ready
        return ready

    def add_call(self, delta: ToolCallDelta) -> None:
        """Takes a piece of a call."""
        if delta.call_index != self._call_index:
            self._end_item("completed")
            self._call_index = delta.call_index
            item_id = self._item_ids.of(0, delta.call_index)
            call_id = self._call_ids.of(0, delta.call_index)
            self.items.append(OutputCall(item_id, call_id, delta.name))
        call = self.items[-1]
        assert isinstance(call, OutputCall)
        call.pieces.append(delta.arguments)
        self.held_byte_count += text_byte_count([delta.arguments])

    def finish(self, reason: FinishReason) -> list[str]:
        """Ends the answer; returns the log probabilities that have waited for text."""
        if not self.items:
            self._begin_message()
        logprobs = self.add_text("")
        self.status = STATUSES[reason]
        self._end_item(self.status)
        return logprobs

    def fail(self) -> None:
        """Ends an answer that comes no further."""
        self.status = "failed"
        if self.items and self.items[-1].status == "in_progress":
            self._end_item("incomplete")

    def add_usage(self, usage: Usage) -> None:
        """Takes what it has cost, which comes last.

        Raises:
            ServiceError: the answer has not ended.
        """
        if self.status == "in_progress":
            raise ServiceError("the LLM service did not finish the answer")
        self.usage = usage

    def json(self, error: ServiceError | None = None) -> str:
        """Returns the JSON of the response as far as it has come."""
        is_cut = self.status == "incomplete"
        members = {
            "id": f"resp_{self._head.request_id}",
            "object": "response",
            "created_at": self._head.created,
            "completed_at": int(time.time()) if self.status == "completed" else None,
            "status": self.status,
            "model": self._head.model,
            "error": error and _failure(error),
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "usage": self.usage and _usage(self.usage),
        }
        output = ",".join(item.json() for item in self.items)
        return f'{in_ascii(members)[:-1]},"output":[{output}],{self._echo.removeprefix("{")}'

    def _begin_message(self) -> None:
        self.items.append(OutputMessage(f"msg_{secrets.token_hex(12)}"))

    def _end_item(self, status: Status) -> None:
        if self.items:
            self.items[-1].status = status


class WholeResponse:
    """Collects an answer's events, and writes them as one response."""

    def __init__(self, head: AnswerHead, echo: str) -> None:
        """`echo` as in `ResponseBody`."""
        self._body = ResponseBody(head, echo)

    @property
    def held_byte_count(self) -> int:
        return self._body.held_byte_count

    def add(self, event: ChatEvent) -> None:
        """Takes the next event."""
        if isinstance(event, TextDelta):
            self._body.add_text(event.text, event.logprobs)
            for delta in event.tool_calls:
                self._body.add_call(delta)
        elif isinstance(event, Finished):
            self._body.finish(event.reason)
        elif isinstance(event, Usage):
            self._body.add_usage(event)

    def body(self) -> bytes:
        """Returns the JSON of the response.

        Raises:
            ServiceError: an event is missing.
        """
        if self._body.usage is None:
            raise ServiceError("the LLM service left out the usage")
        return self._body.json().encode()


class StreamedResponse:
    """Writes an answer's events as the events of a response."""

    def __init__(self, head: AnswerHead, echo: str) -> None:
        """`echo` as in `ResponseBody`."""
        self._body = ResponseBody(head, echo)
        self._event_count = 0

    @property
    def held_byte_count(self) -> int:
        return self._body.held_byte_count

    def event(self, event: ChatEvent) -> bytes:
        """Returns what is sent for an event; may be nothing."""
        return b"".join([*self._begin(), *self._events_of(event)])

    def end(self) -> bytes:
        """Returns the event with the whole response."""
        return self._lifecycle(self._body.status, self._body.json())

    def error(self, error: ServiceError) -> bytes:
        """Returns the events that end a stream which failed."""
        return b"".join([*self._begin(), *self._fail(error)])

    def _begin(self) -> Iterator[bytes]:
        if not self._event_count:
            response = self._body.json()
            yield self._lifecycle("created", response)
            yield self._lifecycle("in_progress", response)

    def _events_of(self, event: ChatEvent) -> Iterator[bytes]:
        if isinstance(event, TextDelta):
            yield from self._add_text(event)
            for delta in event.tool_calls:
                yield from self._add_call(delta)
        elif isinstance(event, Finished):
            yield from self._finish(event.reason)
        elif isinstance(event, Usage):
            self._body.add_usage(event)

    def _add_text(self, delta: TextDelta) -> Iterator[bytes]:
        count = self._item_count
        logprobs = self._body.add_text(delta.text, delta.logprobs)
        yield from self._begin_items(count)
        yield from self._text_delta(delta.text, logprobs)

    def _add_call(self, delta: ToolCallDelta) -> Iterator[bytes]:
        count = self._item_count
        self._body.add_call(delta)
        if self._item_count > count > 0:
            yield from self._end_item(count - 1)
        yield from self._begin_items(count)
        if delta.arguments:
            members = f'"delta":{in_ascii(delta.arguments)}'
            yield self._item_event("function_call_arguments.delta", self._item_count - 1, members)

    def _finish(self, reason: FinishReason) -> Iterator[bytes]:
        count = self._item_count
        logprobs = self._body.finish(reason)
        yield from self._begin_items(count)
        yield from self._text_delta("", logprobs)
        yield from self._end_item(self._item_count - 1)

    def _fail(self, error: ServiceError) -> Iterator[bytes]:
        """Yields both events of a failure: clients differ in which of them they look at.

        The first one's members stand where they are documented, and once more in an object, as
        OpenAI's server sends them: at that its clients raise the error.
        """
        self._body.fail()
        detail = error_body(error)["error"]
        flat = {name: detail[name] for name in ("code", "message", "param")}
        yield self._event("error", in_ascii(flat | {"error": detail})[1:-1])
        yield self._lifecycle("failed", self._body.json(error))

    @property
    def _item_count(self) -> int:
        return len(self._body.items)

    def _begin_items(self, known_count: int) -> Iterator[bytes]:
        """Yields what announces the item that has come, if one has."""
        for index, item in list(enumerate(self._body.items))[known_count:]:
            members = f'"output_index":{index},"item":{item.begun()}'
            yield self._event("response.output_item.added", members)
            if isinstance(item, OutputMessage):
                yield self._part_event("content_part.added", index, f'"part":{text_part("", [])}')

    def _text_delta(self, text: str, logprobs: list[str]) -> Iterator[bytes]:
        if text or logprobs:
            members = f'"delta":{in_ascii(text)},"logprobs":[{",".join(logprobs)}]'
            yield self._part_event("output_text.delta", self._item_count - 1, members)

    def _end_item(self, index: int) -> Iterator[bytes]:
        item = self._body.items[index]
        if isinstance(item, OutputMessage):
            logprobs = ",".join(item.logprobs)
            members = f'"text":{in_ascii(item.text)},"logprobs":[{logprobs}]'
            yield self._part_event("output_text.done", index, members)
            part = text_part(item.text, item.logprobs)
            yield self._part_event("content_part.done", index, f'"part":{part}')
        else:
            members = f'"name":{in_ascii(item.name)},"arguments":{in_ascii(item.arguments)}'
            yield self._item_event("function_call_arguments.done", index, members)
        members = f'"output_index":{index},"item":{item.json()}'
        yield self._event("response.output_item.done", members)

    def _lifecycle(self, status: str, response: str) -> bytes:
        return self._event(f"response.{status}", f'"response":{response}')

    def _part_event(self, kind: str, index: int, members: str) -> bytes:
        return self._item_event(kind, index, f'"content_index":0,{members}')

    def _item_event(self, kind: str, index: int, members: str) -> bytes:
        item_id = self._body.items[index].item_id
        place = f'"item_id":"{item_id}","output_index":{index}'
        return self._event(f"response.{kind}", f"{place},{members}")

    def _event(self, kind: str, members: str) -> bytes:
        number = self._event_count
        self._event_count += 1
        data = f'{{"type":"{kind}","sequence_number":{number},{members}}}'
        return f"event: {kind}\ndata: {data}\n\n".encode()


def text_part(text: str, logprobs: list[str]) -> str:
    """Returns the JSON of a message's one part."""
    return (
        f'{{"type":"output_text","text":{in_ascii(text)},"annotations":[],'
        f'"logprobs":[{",".join(logprobs)}]}}'
    )


def _failure(error: ServiceError) -> dict[str, str]:
    """Returns an error as a response has it, with one of the few codes of OpenAI's types."""
    status = http_status(error)
    client_code = "rate_limit_exceeded" if status == 429 else "invalid_prompt"
    return {"code": "server_error" if status >= 500 else client_code, "message": error.message}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_token_count,
        "input_tokens_details": {
            "cached_tokens": usage.cached_token_count,
            "cache_write_tokens": 0,
            "image_tokens": usage.image_token_count,  # ours, not OpenAI's
        },
        "output_tokens": usage.output_token_count,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_token_count + usage.output_token_count,
    }
