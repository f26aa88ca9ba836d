"""OpenAI's answers: the same events written as one JSON body or as server-sent events."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from gateway.events import (
    ChatEvent,
    Finished,
    FinishReason,
    PromptLogprobs,
    TextDelta,
    TokenLogprob,
    Usage,
)
from gateway.memory import text_byte_count
from gateway.openai.calls import CallForm, MadeCall, ToolCalls, finish_reason
from gateway.openai.errors import error_body
from gateway.openai.pieces import (
    DONE,
    JSONObject,
    compact,
    logprob_json,
    sse_event,
    token_counts,
    token_text,
    usage_json,
)
from gateway.release import release
from protos.errors import ServiceError


@dataclass(frozen=True)
class AnswerHead:
    """What every piece of an answer says of it.

    Attributes:
        request_id: of the request.
        created: Unix time in seconds.
        model: name of the model, as the client said it, or its own.
        system_fingerprint: what made it, as `system_fingerprint` gives it.
    """

    request_id: str
    created: int
    model: str
    system_fingerprint: str

    def json(self, kind: str, prefix: str = "chatcmpl") -> JSONObject:
        """Returns the first members of an object of this kind, whose id begins so."""
        return {
            "id": f"{prefix}-{self.request_id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }


class WholeAnswer:
    """Collects an answer's events, and writes them as one chat.completion."""

    def __init__(self, head: AnswerHead, choice_count: int, calls: CallForm | None = None) -> None:
        self._head = head
        self._choice_count = choice_count
        self._calls = calls or ToolCalls()
        self._choices: defaultdict[int, _CollectedChoice] = defaultdict(_CollectedChoice)
        self._usage: Usage | None = None
        self.held_byte_count = 0

    def add(self, event: ChatEvent) -> None:
        """Takes the next event."""
        if isinstance(event, Usage):
            self._usage = event
        elif isinstance(event, Finished):
            self._choices[event.index].reason = event.reason
        elif isinstance(event, TextDelta):
            self.held_byte_count += self._choices[event.index].add(event)

    def body(self) -> bytes:
        """Returns the JSON of the answer.

        Raises:
            ServiceError: an event is missing.
        """
        if self._usage is None or len(self._choices) != self._choice_count:
            raise ServiceError("the LLM service left out a choice or the usage")
        head = compact(self._head.json("chat.completion")).removesuffix("}")
        choices = ",".join(
            self._choices[index].json(index, self._calls) for index in sorted(self._choices)
        )
        return f'{head},"choices":[{choices}],"usage":{compact(usage_json(self._usage))}}}'.encode()


@dataclass
class _CollectedChoice:
    """What has come of one choice.

    Log probabilities are JSON at once: as objects they would take ten times the memory, and
    writing a million of them at the end would hold the interpreter's lock for a second.
    """

    texts: list[str] = field(default_factory=list)
    logprobs: list[str] = field(default_factory=list)
    calls: defaultdict[int, MadeCall] = field(default_factory=lambda: defaultdict(MadeCall))
    reason: FinishReason | None = None

    def add(self, event: TextDelta) -> int:
        """Takes what is new; returns how many bytes that is as it lies here."""
        logprobs = [compact(token_with_top(logprob)) for logprob in event.logprobs]
        self.texts.append(event.text)
        self.logprobs += logprobs
        for piece in event.tool_calls:
            self.calls[piece.call_index].add(piece)
        arguments = (piece.arguments for piece in event.tool_calls)
        return text_byte_count([event.text, *logprobs, *arguments])

    def json(self, index: int, form: CallForm) -> str:
        if self.reason is None:
            raise ServiceError(f"the LLM service did not finish choice {index}")
        reason = finish_reason(self.reason, form, has_called=bool(self.calls))
        tokens = ",".join(self.logprobs)
        logprobs = f'{{"content":[{tokens}],"refusal":null}}' if tokens else "null"
        return (
            f'{{"index":{index},"message":{compact(self._message(index, form))},'
            f'"logprobs":{logprobs},"finish_reason":{compact(reason)}}}'
        )

    def _message(self, index: int, form: CallForm) -> JSONObject:
        message: JSONObject = {"role": "assistant", "content": "".join(self.texts), "refusal": None}
        if self.calls:
            message["content"] = message["content"] or None
            message |= form.message(index, self.calls)
        return message


class StreamedAnswer:
    """Writes an answer's events as chat.completion.chunk events."""

    held_byte_count = 0

    def __init__(
        self,
        head: AnswerHead,
        choice_count: int,
        *,
        include_usage: bool,
        continuous_usage: bool = False,
        calls: CallForm | None = None,
    ) -> None:
        """With `include_usage` a last chunk holds the usage, and all others a null.

        With `continuous_usage` the others hold what all choices together have used so far.
        """
        self._head = head
        self._choice_count = choice_count
        self._include_usage = include_usage
        self._continuous_usage = continuous_usage
        self._calls = calls or ToolCalls()
        self._callers: set[int] = set()  # choices that have made a call
        self._has_begun = False
        self._prompt_token_count: int | None = None
        self._output_token_count = 0

    def event(self, event: ChatEvent) -> bytes:
        """Returns the chunk of an event; nothing for an empty delta or a usage nobody asked for.

        Before the first event's comes a chunk for each choice: the role.
        """
        if self._has_begun:
            return self._chunk_of(event)
        self._has_begun = True
        if isinstance(event, TextDelta):
            self._prompt_token_count = event.prompt_token_count
        delta = {"role": "assistant", "content": "", "refusal": None}
        roles = [self._choice(index, delta) for index in range(self._choice_count)]
        return b"".join([*roles, self._chunk_of(event)])

    def end(self) -> bytes:
        """Returns what ends a stream that has succeeded."""
        return DONE

    def error(self, error: ServiceError) -> bytes:
        """Returns the event that ends a stream which failed; no [DONE] follows it."""
        return sse_event(error_body(error))

    def _chunk_of(self, event: ChatEvent) -> bytes:
        if isinstance(event, Usage):
            return self._chunk([], usage_json(event)) if self._include_usage else b""
        if isinstance(event, PromptLogprobs):
            return b""
        if isinstance(event, Finished):
            has_called = event.index in self._callers
            reason = finish_reason(event.reason, self._calls, has_called=has_called)
            return self._choice(event.index, {}, finish_reason=reason)
        self._output_token_count += event.token_count
        if not (event.text or event.logprobs or event.tool_calls):
            return b""
        return self._choice(event.index, self._delta(event), _logprobs(event.logprobs))

    def _delta(self, event: TextDelta) -> JSONObject:
        if not event.tool_calls:
            return {"content": event.text}
        self._callers.add(event.index)
        text = {"content": event.text} if event.text else {}
        return text | self._calls.delta(event.index, event.tool_calls)

    def _choice(
        self,
        index: int,
        delta: JSONObject,
        logprobs: JSONObject | None = None,
        finish_reason: str | None = None,
    ) -> bytes:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        return self._chunk([choice], self._usage_so_far() if self._continuous_usage else None)

    def _usage_so_far(self) -> JSONObject | None:
        if self._prompt_token_count is None:
            return None
        return token_counts(self._prompt_token_count, self._output_token_count)

    def _chunk(self, choices: list[JSONObject], usage: JSONObject | None) -> bytes:
        chunk = self._head.json("chat.completion.chunk") | {"choices": choices}
        if self._include_usage:
            chunk["usage"] = usage
        return sse_event(chunk)


def system_fingerprint(model_fingerprint: bytes) -> str:
    """Returns a name for what makes answers: this checkpoint, read by this version."""
    digest = hashlib.sha256(model_fingerprint + release().version.encode())
    return f"fp_{digest.hexdigest()[:10]}"


def model_object(name: str, created: int, max_context_token_count: int) -> JSONObject:
    """Returns a model as /v1/models has it; `created` is its Unix time in seconds."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "internvl-serving",
        "max_model_len": max_context_token_count,
    }


def model_list(*models: JSONObject) -> JSONObject:
    """Returns /v1/models."""
    return {"object": "list", "data": list(models)}


def _logprobs(logprobs: Iterable[TokenLogprob]) -> JSONObject | None:
    content = [token_with_top(logprob) for logprob in logprobs]
    return {"content": content, "refusal": None} if content else None


def token_with_top(logprob: TokenLogprob) -> JSONObject:
    """Returns a token, and the most probable ones in its place."""
    return _token(logprob) | {"top_logprobs": [_token(top) for top in logprob.top]}


def _token(logprob: TokenLogprob) -> JSONObject:
    return {
        "token": token_text(logprob.token),
        "bytes": list(logprob.token),
        "logprob": logprob_json(logprob),
    }
