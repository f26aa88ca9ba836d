"""The ledger: every request that was sent ends in exactly one of a few ways, or the run has failed.

What a client saw is an `Exchange`. `judge` says which ending it is, and trusts nothing: the text of
a whole answer is compared with the right one, and an error must be one that a client can read.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from tests.e2e.questions import FINAL_PUNCTUATION, Question

DONE = "[DONE]"
# What a stream says that has been silent for long.
KEEP_ALIVE = ": keep-alive"
ERROR_KEYS = {"message", "type", "param", "code"}
ERROR_TYPES = {
    "authentication_error",
    "invalid_request_error",
    "permission_error",
    "rate_limit_error",
    "server_error",
}
# What the gateway calls a bug of its own.
BUG = "server_error"
SHOWN_VIOLATION_COUNT = 10


class Ending(Enum):
    """How a request may end."""

    WHOLE = "whole answer"
    ERROR_STATUS = "typed HTTP error"
    ERROR_EVENT = "SSE error event"
    BROKEN = "connection broken by the gateway's end"
    LEFT = "client left"


class ViolationError(AssertionError):
    """A request ended in a way that no request may."""


@dataclass(frozen=True)
class Expectation:
    """What the answer to a request must be.

    Attributes:
        question: what is asked, with the right answer.
        stream: whether the answer is a stream of events.
        choice_count: how many choices it has; all of them say the same.
    """

    question: Question
    stream: bool = False
    choice_count: int = 1


@dataclass
class Exchange:
    """One request as its client saw it; times are those of time.monotonic.

    Attributes:
        title: the request in a few words.
        gateway: where it was sent.
        body: what came of the answer's body.
        broken: how the connection broke; empty when it did not.
        left: whether the client went away by itself.
        hung: whether the client gave up, long after the request's deadline.
        history: what happened when, for whoever reads the report.
    """

    number: int
    title: str
    expected: Expectation
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    gateway: str = ""
    status: int | None = None
    body: bytearray = field(default_factory=bytearray)
    broken: str = ""
    left: bool = False
    hung: bool = False
    history: list[tuple[float, str]] = field(default_factory=list)

    @property
    def request_id(self) -> str:
        """What all logs call the request."""
        return f"chaos-{self.number}"

    def note(self, event: str) -> None:
        """Adds a line to the history."""
        self.history.append((time.monotonic(), event))

    def told(self) -> str:
        """Returns the history in lines, by seconds since the request was sent."""
        lines = [f"request {self.number}: {self.title}"]
        lines += [f"  {moment - self.began:7.3f} s  {event}" for moment, event in self.history]
        return "\n".join([*lines, f"  body: {bytes(self.body[-2000:])!r}"])


@dataclass
class Outage:
    """A gateway itself ends: by SIGKILL, or by SIGTERM after its drain.

    Attributes:
        gateway: its address.
        end: when the next one served there.
    """

    by_kill: bool
    gateway: str = ""
    start: float = field(default_factory=time.monotonic)
    end: float = float("inf")

    def excuses(self, exchange: Exchange) -> bool:
        """Says whether it may have broken this exchange's connection.

        After SIGTERM that is only one that was never answered, and came when it was too late: the
        requests in flight are owed an ending.
        """
        if exchange.gateway != self.gateway:
            return False
        if self.by_kill:
            return exchange.began <= self.end and self.start <= exchange.ended
        return self.start <= exchange.began <= self.end and exchange.status is None


@dataclass
class Trouble:
    """A fault that may make requests fail, though no connection of theirs may break.

    Attributes:
        kind: what the fault is called.
        request_ids: of the requests that it may fail, where these are known: those that were in
            flight in a process. None: any that meets the fault.
        gateway: where requests must have been sent that it may fail; empty: anywhere.
    """

    kind: str
    request_ids: set[str] | None = None
    gateway: str = ""
    start: float = field(default_factory=time.monotonic)
    end: float = float("inf")

    def excuses(self, exchange: Exchange) -> bool:
        """Says whether it may have made this request fail."""
        if exchange.began > self.end or self.start > exchange.ended:
            return False
        if self.gateway and exchange.gateway != self.gateway:
            return False
        return self.request_ids is None or exchange.request_id in self.request_ids


class Ledger:
    """Keeps an account of every request that was sent.

    Attributes:
        seed: what the run is replayed with.
        gateway_count: how many there are; a request that one refuses goes to another.
        outages: when gateways themselves were ended.
        troubles: what else was done.
        endings: by the request's number.
        violations: what must not have happened, told with the histories.
    """

    def __init__(self, seed: int, gateway_count: int = 1) -> None:
        self.seed = seed
        self.gateway_count = gateway_count
        self.outages: list[Outage] = []
        self.troubles: list[Trouble] = []
        self.endings: dict[int, Ending] = {}
        self.statuses: Counter[int] = Counter()
        self.violations: list[str] = []
        self.seconds: list[float] = []
        self._exchanges: dict[int, Exchange] = {}

    def begin(self, number: int, title: str, expected: Expectation) -> Exchange:
        """Opens the account of a request that is about to be sent."""
        exchange = Exchange(number, title, expected)
        if number in self._exchanges:
            self._violate("the number was sent twice", exchange)
        self._exchanges[number] = exchange
        return exchange

    def never_sent(self, exchange: Exchange) -> bool:
        """Closes the account of a request that found nobody to connect to, as if it were not.

        Returns:
            Whether all gateways had been ended; else it is a violation.
        """
        exchange.ended = time.monotonic()
        del self._exchanges[exchange.number]
        ended = {
            one.gateway
            for one in self.outages
            if one.start <= exchange.ended and exchange.began <= one.end
        }
        if len(ended) == self.gateway_count:
            return True
        self._violate("nobody listens, though a gateway was not ended", exchange)
        return False

    def end(self, exchange: Exchange) -> Ending | None:
        """Closes the account of a request; None, and a violation more, if it may not end so."""
        exchange.ended = time.monotonic()
        try:
            ending = self._ending(exchange)
        except ViolationError as error:
            self._violate(str(error), exchange)
            return None
        self.endings[exchange.number] = ending
        self.statuses[exchange.status or 0] += 1
        if ending is Ending.WHOLE:
            self.seconds.append(exchange.ended - exchange.began)
        return ending

    def _ending(self, exchange: Exchange) -> Ending:
        if exchange.number in self.endings:
            raise ViolationError(f"a second ending after: {self.endings[exchange.number].value}")
        ending = judge(exchange)
        if ending is Ending.BROKEN and not any(o.excuses(exchange) for o in self.outages):
            raise ViolationError(f"the connection broke: {exchange.broken}")
        return ending

    def _violate(self, sentence: str, exchange: Exchange) -> None:
        self.violations.append(f"{sentence}\n{exchange.told()}")

    def check_failures(self) -> None:
        """Makes each error a violation that nothing excuses that was done to the processes."""
        for exchange in self._exchanges.values():
            ending = self.endings.get(exchange.number)
            if ending in (Ending.ERROR_STATUS, Ending.ERROR_EVENT) and not any(
                trouble.excuses(exchange) for trouble in self.troubles
            ):
                self._violate("an error, and nothing had been done to this request", exchange)

    def check(self) -> None:
        """Checks that each request has had its one ending.

        Raises:
            ViolationError: with the seed, and the histories of those that had another or none.
        """
        told = [*self.violations]
        if not told:
            unended = [one for one in self._exchanges.values() if one.number not in self.endings]
            told = [f"no ending\n{one.told()}" for one in unended]
        if told:
            shown = "\n\n".join(told[:SHOWN_VIOLATION_COUNT])
            raise ViolationError(f"{len(told)} violations; CHAOS_SEED={self.seed}\n\n{shown}")

    def counts(self) -> Counter[Ending]:
        """Returns how many requests ended in which way."""
        return Counter(self.endings.values())


def judge(exchange: Exchange) -> Ending:
    """Returns how an exchange ended; BROKEN is for the ledger to excuse.

    Raises:
        ViolationError: silence, a wrong answer, a second ending, an error that nobody can read.
    """
    if exchange.hung:
        raise ViolationError("the request hung, past its deadline")
    if exchange.left:
        return Ending.LEFT
    if exchange.broken:
        return Ending.BROKEN
    if exchange.status is None:
        raise ViolationError("the connection ended without an answer")
    if exchange.status != 200:
        check_error(parsed(exchange.body))
        return Ending.ERROR_STATUS
    return (_judge_stream if exchange.expected.stream else _judge_whole)(exchange)


def _judge_whole(exchange: Exchange) -> Ending:
    answer = parsed(exchange.body)
    choices = answer.get("choices")
    if not isinstance(choices, list) or answer.get("object") != "chat.completion":
        raise ViolationError("the answer is no chat.completion")
    texts = {choice["index"]: choice["message"]["content"] for choice in choices}
    reasons = [choice["finish_reason"] for choice in choices]
    if len(choices) != len(texts):
        raise ViolationError("a choice came twice")
    _check_texts(texts, exchange.expected)
    _check_finished(reasons, answer.get("usage"))
    return Ending.WHOLE


def _judge_stream(exchange: Exchange) -> Ending:
    events = _events(exchange.body)
    errors = [event for event in events if event is not None and "error" in event]
    if errors:
        return _judge_failed_stream(events, errors, exchange.expected)
    if events.count(None) != 1 or events[-1] is not None:
        raise ViolationError(
            "a silent cut: the stream has not exactly one [DONE] as its last event"
        )
    chunks = [event for event in events if event is not None]
    if not chunks or chunks[-1]["choices"] or any(chunk.get("usage") for chunk in chunks[:-1]):
        raise ViolationError("the usage is not the one last chunk")
    texts = _streamed_texts(chunks)
    _check_finished(_finish_reasons(chunks), chunks[-1].get("usage"))
    _check_texts(texts, exchange.expected)
    return Ending.WHOLE


def _judge_failed_stream(
    events: Sequence[Mapping[str, Any] | None],
    errors: Sequence[Mapping[str, Any]],
    expected: Expectation,
) -> Ending:
    if len(errors) != 1 or events[-1] is not errors[0]:
        raise ViolationError("a second ending: the error event is not the one last event")
    check_error(errors[0])
    for text in _streamed_texts([chunk for chunk in events[:-1] if chunk is not None]).values():
        if not _folded(expected.question.answer).startswith(_folded(text)):
            raise ViolationError(f"wrong before it failed: {text!r}")
    return Ending.ERROR_EVENT


def _events(body: bytearray) -> list[Mapping[str, Any] | None]:
    """Returns the events of a stream; None is [DONE]."""
    *events, rest = bytes(body).decode(errors="replace").split("\n\n")
    if rest:
        raise ViolationError(f"a silent cut within an event: {rest[-200:]!r}")
    events = [event for event in events if event != KEEP_ALIVE]
    if not all(event.startswith("data: ") for event in events):
        raise ViolationError("the stream has a line that is no event")
    data = [event.removeprefix("data: ") for event in events]
    return [None if one == DONE else parsed(one.encode()) for one in data]


def _streamed_texts(chunks: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    texts: dict[int, str] = {}
    finished = set()
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        index = choice["index"]
        if index in finished:
            raise ViolationError(f"choice {index} goes on after its finish")
        texts[index] = texts.get(index, "") + (choice["delta"].get("content") or "")
        if choice["finish_reason"]:
            finished.add(index)
    return texts


def _finish_reasons(chunks: Sequence[Mapping[str, Any]]) -> list[str | None]:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    given = {choice["index"]: choice["finish_reason"] for choice in choices}
    return list(given.values())


def _check_finished(reasons: Sequence[str | None], usage: object) -> None:
    if not all(reason == "stop" for reason in reasons):
        raise ViolationError(f"the choices finished with {reasons}, not all with stop")
    if not isinstance(usage, dict) or not usage.get("completion_tokens"):
        raise ViolationError("the answer has no usage")


def _check_texts(texts: Mapping[int, str], expected: Expectation) -> None:
    if sorted(texts) != list(range(expected.choice_count)):
        raise ViolationError(f"the answer has the choices {sorted(texts)}")
    for text in texts.values():
        if not expected.question.is_answered_by(text):
            raise ViolationError(f"wrong: {text!r} instead of {expected.question.answer!r}")


def check_error(document: Mapping[str, Any]) -> None:
    """Checks that a document is an error as OpenAI's clients read it, and not a bug's.

    Raises:
        ViolationError: it is not.
    """
    error = document.get("error")
    if not isinstance(error, dict) or set(error) != ERROR_KEYS or set(document) != {"error"}:
        raise ViolationError(f"an untyped error: {str(document)[:200]}")
    if error["type"] not in ERROR_TYPES or not error["message"] or not error["code"]:
        raise ViolationError(f"an untyped error: {error}")
    if error["code"] == BUG:
        raise ViolationError(f"a bug: {error['message']}")


def parsed(body: bytes | bytearray) -> Mapping[str, Any]:
    """Returns the JSON object in a body.

    Raises:
        ViolationError: there is none.
    """
    try:
        document = json.loads(body)
    except ValueError as error:
        raise ViolationError(f"not JSON: {bytes(body[:200])!r}") from error
    if not isinstance(document, dict):
        raise ViolationError(f"not an object: {bytes(body[:200])!r}")
    return document


def _folded(text: str) -> str:
    return text.strip().rstrip(FINAL_PUNCTUATION).casefold()
