"""OpenAI's older answers: text completions, as one JSON body or as server-sent events."""

from __future__ import annotations

import codecs
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

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
from gateway.openai.answers import AnswerHead
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
from protos.errors import ServiceError

KIND = "text_completion"
ID_PREFIX = "cmpl"


@dataclass(frozen=True)
class CompletionForm:
    """What the completions of a request hold.

    Attributes:
        choice_count: completions of each prompt.
        echoes: of each prompt the text that stands before its completions; None: that of the tokens
            that come as log probabilities of the prompt.
        has_logprobs: whether log probabilities are part of it.
        is_echo_alone: whether the one token that is generated is left out.
    """

    choice_count: int
    echoes: Sequence[str | None]
    has_logprobs: bool = False
    is_echo_alone: bool = False

    @property
    def total_count(self) -> int:
        """Completions of all prompts."""
        return self.choice_count * len(self.echoes)

    def usage(self, usage: Usage) -> Usage:
        """Returns the usage as the client is to see it."""
        return replace(usage, output_token_count=0) if self.is_echo_alone else usage


@dataclass(frozen=True)
class Piece:
    """What is new of one completion.

    Attributes:
        index: of the choice.
        text: may be empty.
        logprobs: lists of equal length, by their names in the JSON; None where there are none.
        reason: why it ended, if it did.
    """

    index: int
    text: str = ""
    logprobs: dict[str, list[Any]] | None = None
    reason: FinishReason | None = None


class Pieces:
    """Turns the events of an answer into pieces of completions."""

    def __init__(self, form: CompletionForm) -> None:
        self._form = form
        self._prompts: dict[int, _Tokens] = {}
        self._choices: dict[int, _Tokens] = {}

    def of(self, event: TextDelta | Finished | PromptLogprobs) -> Iterator[Piece]:
        """Yields the pieces of the next event. Before a prompt's first come those of its echo."""
        prompt_index = event.index // self._form.choice_count
        if isinstance(event, PromptLogprobs):
            yield from self._echo(prompt_index, event.tokens)
            return
        if prompt_index not in self._prompts:
            yield from self._echo(prompt_index, ())
        if isinstance(event, Finished):
            yield Piece(event.index, reason="length" if self._form.is_echo_alone else event.reason)
        elif not self._form.is_echo_alone and (event.text or event.logprobs):
            yield Piece(event.index, event.text, self._logprobs(event, prompt_index))

    def _echo(self, prompt_index: int, tokens: Sequence[TokenLogprob]) -> Iterator[Piece]:
        """Yields the same for all choices of a prompt: its text, and log probabilities."""
        text = self._form.echoes[prompt_index]
        is_first = prompt_index not in self._prompts
        prompt = self._prompts.setdefault(prompt_index, _Tokens(text))
        columns = prompt.columns(tokens, begins=is_first)
        if text is None:
            text = prompt.new_text
        elif not is_first:
            text = ""
        if not (text or tokens):
            return
        logprobs = columns if tokens and self._form.has_logprobs else None
        first = prompt_index * self._form.choice_count
        for index in range(first, first + self._form.choice_count):
            yield Piece(index, text, logprobs)

    def _logprobs(self, event: TextDelta, prompt_index: int) -> dict[str, list[Any]] | None:
        if not (self._form.has_logprobs and event.logprobs):
            return None
        if event.index not in self._choices:
            self._choices[event.index] = _Tokens(offset=self._prompts[prompt_index].end)
        return self._choices[event.index].columns(event.logprobs)


class _Tokens:
    """Tokens in their order, and where each begins in the text.

    Attributes:
        new_text: what the latest tokens have added.
        end: where the text ends, in characters.
    """

    def __init__(self, text: str | None = None, offset: int = 0) -> None:
        """Takes the whole text where it is known: tokens may stand before it that are not in it."""
        self.new_text = ""
        self._text = text
        self._offset = offset
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    @property
    def end(self) -> int:
        return self._offset if self._text is None else len(self._text)

    def columns(
        self, tokens: Iterable[TokenLogprob], *, begins: bool = False
    ) -> dict[str, list[Any]]:
        """Returns the lists of the next tokens; before what `begins` a prompt stands nothing."""
        columns: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        self.new_text = ""
        for token in tokens:
            columns["tokens"].append(token_text(token.token))
            columns["token_logprobs"].append(None if begins else logprob_json(token))
            columns["top_logprobs"].append(None if begins else _top(token))
            columns["text_offset"].append(self._offset)
            self._advance(token.token)
            begins = False
        return columns

    def _advance(self, token: bytes) -> None:
        new = self._utf8.decode(token)
        self.new_text += new
        if self._text is not None and self._offset == 0 and not self._text.startswith(new):
            new = new.removeprefix(" ")  # SentencePiece's, before the first word
            if not self._text.startswith(new):  # the beginning token
                return
        self._offset += len(new)


def _top(token: TokenLogprob) -> dict[str, float]:
    """Returns the most probable tokens and the token itself; of equal texts the best."""
    best: dict[str, float] = {}
    for one in (*token.top, token):
        text = token_text(one.token)
        best[text] = max(logprob_json(one), best.get(text, logprob_json(one)))
    return best


class WholeCompletion:
    """Collects an answer's events, and writes them as one text_completion."""

    def __init__(self, head: AnswerHead, form: CompletionForm) -> None:
        self._head = head
        self._form = form
        self._pieces = Pieces(form)
        self._choices: defaultdict[int, _CollectedChoice] = defaultdict(_CollectedChoice)
        self._usage: Usage | None = None
        self.held_byte_count = 0

    def add(self, event: ChatEvent) -> None:
        """Takes the next event."""
        if isinstance(event, Usage):
            self._usage = self._form.usage(event)
            return
        for piece in self._pieces.of(event):
            self.held_byte_count += self._choices[piece.index].add(piece)

    def body(self) -> bytes:
        """Returns the JSON of the answer.

        Raises:
            ServiceError: an event is missing.
        """
        if self._usage is None or len(self._choices) != self._form.total_count:
            raise ServiceError("the LLM service left out a choice or the usage")
        head = compact(self._head.json(KIND, ID_PREFIX)).removesuffix("}")
        choices = ",".join(self._choices[index].json(index) for index in sorted(self._choices))
        return f'{head},"choices":[{choices}],"usage":{compact(usage_json(self._usage))}}}'.encode()


@dataclass
class _CollectedChoice:
    """What has come of one completion.

    Log probabilities are JSON at once, and one text for each event, to take less memory.
    """

    texts: list[str] = field(default_factory=list)
    logprobs: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    reason: FinishReason | None = None

    def add(self, piece: Piece) -> int:
        """Takes what is new; returns how many bytes that is as it lies here."""
        columns = {name: compact(column)[1:-1] for name, column in (piece.logprobs or {}).items()}
        self.texts.append(piece.text)
        self.reason = piece.reason
        for name, column in columns.items():
            self.logprobs[name].append(column)
        return text_byte_count([piece.text, *columns.values()])

    def json(self, index: int) -> str:
        if self.reason is None:
            raise ServiceError(f"the LLM service did not finish choice {index}")
        columns = (f'"{name}":[{",".join(column)}]' for name, column in self.logprobs.items())
        logprobs = f"{{{','.join(columns)}}}" if self.logprobs else "null"
        return (
            f'{{"index":{index},"text":{compact("".join(self.texts))},"logprobs":{logprobs},'
            f'"finish_reason":{compact(self.reason)}}}'
        )


class StreamedCompletion:
    """Writes an answer's events as text_completion events."""

    held_byte_count = 0

    def __init__(
        self,
        head: AnswerHead,
        form: CompletionForm,
        *,
        include_usage: bool,
        continuous_usage: bool = False,
    ) -> None:
        """With `include_usage` a last chunk holds the usage, and all others a null.

        With `continuous_usage` the others hold what all choices together have used so far.
        """
        self._head = head
        self._form = form
        self._pieces = Pieces(form)
        self._include_usage = include_usage
        self._continuous_usage = continuous_usage
        self._used = Usage(0, 0, 0, 0)

    def event(self, event: ChatEvent) -> bytes:
        """Returns the chunks of an event; nothing for an empty one."""
        if isinstance(event, Usage):
            usage = usage_json(self._form.usage(event))
            return self._chunk([], usage) if self._include_usage else b""
        if isinstance(event, TextDelta):
            self._used += Usage(event.prompt_token_count or 0, event.token_count, 0, 0)
        return b"".join(map(self._choice, self._pieces.of(event)))

    def end(self) -> bytes:
        """Returns what ends a stream that has succeeded."""
        return DONE

    def error(self, error: ServiceError) -> bytes:
        """Returns the event that ends a stream which failed; no [DONE] follows it."""
        return sse_event(error_body(error))

    def _choice(self, piece: Piece) -> bytes:
        choice = {
            "index": piece.index,
            "text": piece.text,
            "logprobs": piece.logprobs,
            "finish_reason": piece.reason,
        }
        return self._chunk([choice], self._usage_so_far() if self._continuous_usage else None)

    def _usage_so_far(self) -> JSONObject:
        used = self._form.usage(self._used)
        return token_counts(used.prompt_token_count, used.output_token_count)

    def _chunk(self, choices: list[JSONObject], usage: JSONObject | None) -> bytes:
        chunk = self._head.json(KIND, ID_PREFIX) | {"choices": choices}
        if self._include_usage:
            chunk["usage"] = usage
        return sse_event(chunk)
