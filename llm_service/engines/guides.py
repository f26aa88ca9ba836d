"""Guided decoding: guides compiled to matchers, which say what tokens may come next.

llguidance does the matching; grammars.py has what its languages are.
"""

from __future__ import annotations

import asyncio
import copy
import json
import re
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import structlog
import torch
from llguidance import LLMatcher

from llm_service.engines import guide_trial
from llm_service.engines.admission import RETRY_AFTER_SECONDS, engine_dead
from llm_service.engines.base import Account
from llm_service.engines.branches import Branch, GrammarBranch, InsteadBranch, TextBranch
from llm_service.engines.call_mark import CallMark
from llm_service.engines.grammars import (
    ANY_OBJECT,
    arguments_grammar,
    calls_grammar,
    guide_grammar,
)
from llm_service.engines.schemas import REGEX_ERROR, Fault, explained, pattern_complaint
from llm_service.engines.vocabulary import Vocabulary, token_bits
from llm_service.sampling import Guide, OutputGuide, ToolCalls
from llm_service.tokenizer import Tokenizer
from llm_service.tools.base import Envelope, ToolDefinition
from protos.errors import InvalidArgumentError, OverloadedError

logger = structlog.get_logger()

Kept = TypeVar("Kept")
# What is compiled, and kept.
Language = Guide | ToolCalls

NAMES = {
    "json_object": "the JSON object",
    "json_schema": "the JSON schema",
    "regex": "the regular expression",
    "grammar": "the grammar",
}
MAX_SOURCE_BYTE_COUNT = 64 * 1024
MAX_REASON_LENGTH = 300
CACHED_GUIDE_COUNT = 64
# A guide that is refused for its cost takes 2 seconds: nobody waits longer than half a minute.
MAX_COMPILING_COUNT = 16
TRIAL_SECONDS = 30.0
CPU_TIME = f"{guide_trial.CPU_SECONDS} s of CPU time"
MEMORY = f"{guide_trial.MEMORY_BYTE_COUNT >> 20} MiB of memory"
STACK = f"{guide_trial.STACK_BYTE_COUNT >> 20} MiB of stack"
# CPU time. A mask takes some 10 microseconds as a rule, and some 10 milliseconds where a schema is
# large or the tokens before it were new to its lexer. Where a grammar is ambiguous it takes more
# with every token: llguidance's limits, which count, let it come to half a second.
MAX_MASK_SECONDS = 0.2
# Masks of drafts are worth no more.
MAX_AHEAD_SECONDS = 0.001
# What a request may use up besides, over all its choices: so much at once, and so much a token.
MASK_CREDIT_SECONDS = 1.0
SECONDS_PER_MASK = 0.01


class TooCostlyError(Exception):
    """A grammar broke a limit of its trial.

    Attributes:
        limit: which one, e.g. "2 s of CPU time".
        index: of the grammar that did; of CPU time, which they share, the one that took most.
        seconds: CPU time that this one has taken, at least.
    """

    def __init__(self, limit: str, index: int, seconds: float = 0.0) -> None:
        super().__init__(f"it takes more than {limit} to compile")
        self.limit = limit
        self.index = index
        self.seconds = seconds


@dataclass
class _Compilation:
    """A guide that is compiled, or waits to be: the thread's work, and who wants the result."""

    work: Future[LLMatcher | Fault]
    result: asyncio.Task[LLMatcher | Fault]
    waiter_count: int = 0


class GuideCompiler:
    """Makes matchers, and keeps the compiled form of the latest guides, and why others are refused.

    One event loop calls it, and owns what is kept. A thread of its own compiles, which also bounds
    what compiling may take from the machine; another one makes the matchers, so that a guide that
    is kept waits for none that is new.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary_size: int) -> None:
        """Has the vocabulary read on the thread: half a second for 150 thousand tokens.

        Most of that time the interpreter's lock is held, so it is no work for the first request,
        but the engine's first run, which hardly needs that, goes on beside it.
        """
        self._compiler_thread = ThreadPoolExecutor(1, thread_name_prefix="guide-compiler")
        self._vocabulary = self._compiler_thread.submit(Vocabulary, tokenizer, vocabulary_size)
        self._matcher_thread = ThreadPoolExecutor(1, thread_name_prefix="guide-matchers")
        self._compiling: dict[Language, _Compilation] = {}
        self._compiled: OrderedDict[Language, LLMatcher] = OrderedDict()
        self._refused: OrderedDict[Language, Fault] = OrderedDict()
        self._marks: dict[Envelope, CallMark] = {}
        self._is_closed = False

    async def matcher(
        self, guide: OutputGuide, stop_token_ids: frozenset[int], account: Account
    ) -> TokenMatcher:
        """Returns a matcher at the beginning of the guide's language.

        That takes microseconds for a guide that is kept, a tenth of a second for a new one, at most
        a few seconds for one that is refused, and as long for each that is compiled before it.

        Args:
            guide: what the output must be.
            stop_token_ids: what may end it.
            account: of the request, which pays for the masks.

        Raises:
            InvalidArgumentError: the guide is malformed, too large, too complex or matches nothing,
                or there is no stop token that could end its output.
            OverloadedError: too many guides wait to be compiled, or the machine is too busy to.
            EngineDeadError: the compiler is closed.
        """
        languages = _languages(guide)
        if not stop_token_ids:
            raise _refusal(
                languages[0], "needs a token that ends the output, and the request ignores them all"
            )
        compiled = await self.compiled(guide)
        return await asyncio.get_running_loop().run_in_executor(
            self._matcher_thread, self._matcher, guide, compiled, stop_token_ids, account
        )

    async def compiled(self, guide: OutputGuide) -> list[LLMatcher]:
        """Returns the compiled forms of a guide's languages; errors as of `matcher`."""
        if self._is_closed:
            raise engine_dead()
        return [await self._checked(language) for language in _languages(guide)]

    def close(self) -> None:
        """Ends the threads, once they have done what they are at; what waits for them fails."""
        self._is_closed = True
        self._compiler_thread.shutdown(wait=False)
        self._matcher_thread.shutdown(wait=False)

    async def _checked(self, language: Language) -> LLMatcher:
        if (size := len(_source(language).encode())) > MAX_SOURCE_BYTE_COUNT:
            raise _refusal(
                language, f"has {size} bytes; it must have at most {MAX_SOURCE_BYTE_COUNT}"
            )
        compiled = await self._known(language)
        if isinstance(compiled, Fault):
            raise _unfollowable(language, compiled)
        return compiled

    def _matcher(
        self,
        guide: OutputGuide,
        compiled: Sequence[LLMatcher],
        stop_token_ids: frozenset[int],
        account: Account,
    ) -> TokenMatcher:
        language, *_ = _languages(guide)
        branches = self._branches(guide, [each.deep_copy() for each in compiled])
        vocabulary = self._vocabulary.result()
        return TokenMatcher(language, branches, vocabulary, stop_token_ids, account)

    def _branches(self, guide: OutputGuide, matchers: Sequence[LLMatcher]) -> list[Branch]:
        vocabulary = self._vocabulary.result()
        if isinstance(guide, Guide):
            return [GrammarBranch(matchers[0], vocabulary.ordinary)]
        envelope = guide.calls.envelope
        marks = map(vocabulary.special_id, envelope.control_tokens)
        allowed = vocabulary.ordinary | token_bits(marks, vocabulary.size)
        calls = GrammarBranch(matchers[0], allowed)
        if guide.is_required:
            return [calls]
        mark = self._marks.get(envelope) or CallMark(vocabulary, envelope)
        self._marks[envelope] = mark
        if guide.instead is None:
            return [TextBranch(mark, calls)]
        return [calls, InsteadBranch(matchers[1], vocabulary.ordinary, mark)]

    async def _known(self, guide: Language) -> LLMatcher | Fault:
        """Returns a guide's compiled form, or why it has none; has it compiled if it is new."""
        if guide in self._compiled:
            self._compiled.move_to_end(guide)
            return self._compiled[guide]
        if guide in self._refused:
            self._refused.move_to_end(guide)
            return self._refused[guide]
        compilation = self._compiling.get(guide) or self._begin(guide)
        compilation.waiter_count += 1
        try:
            # It goes on when a request that waits for it is cancelled: others may wait for it too.
            return await asyncio.shield(compilation.result)
        finally:
            compilation.waiter_count -= 1
            # Nobody waits for it any more, and it has not begun.
            if not compilation.waiter_count and compilation.work.cancel():
                del self._compiling[guide]

    def _begin(self, guide: Language) -> _Compilation:
        self._check_queue()
        work = self._compiler_thread.submit(self._compile, guide)
        result = asyncio.create_task(self._keep_compiled(guide, work))
        self._compiling[guide] = compilation = _Compilation(work, result)
        return compilation

    def _check_queue(self) -> None:
        if (count := len(self._compiling)) >= MAX_COMPILING_COUNT:
            raise OverloadedError(
                f"{count} guides wait to be compiled, and at most {MAX_COMPILING_COUNT} may",
                retry_after=RETRY_AFTER_SECONDS,
            )

    async def _keep_compiled(
        self, guide: Language, work: Future[LLMatcher | Fault]
    ) -> LLMatcher | Fault:
        try:
            compiled = await asyncio.wrap_future(work)
        finally:
            if not work.cancelled():
                del self._compiling[guide]
        if isinstance(compiled, Fault):
            _keep(self._refused, guide, compiled)
        else:
            _keep(self._compiled, guide, compiled)
        return compiled

    def _compile(self, language: Language) -> LLMatcher | Fault:
        if self._is_closed:
            raise engine_dead()
        vocabulary = self._vocabulary.result()
        try:
            if isinstance(language, ToolCalls):
                grammar = _tried_calls(language, vocabulary.special_id)
            else:
                grammar = _tried(language)
        except TooCostlyError as error:
            return Fault(str(error))
        if isinstance(grammar, Fault):
            return grammar
        compiled = LLMatcher(vocabulary.tokenizer, grammar, log_level=0, limits=guide_trial.LIMITS)
        # The first mask is computed on a copy: a stepped matcher takes longer to copy.
        reason = guide_trial.first_error(compiled.deep_copy())
        return _fault(language, reason) if reason else compiled


class TokenMatcher:
    """The place of one output within its guide's language.

    Wherever the output may end, all of the request's stop tokens are allowed, and nowhere else:
    what comes before one always belongs to the language, also where a request names an ordinary
    token as a stop token. Special tokens, images' tokens and ids without a text are never allowed,
    but in text that is free, and where they mark a call of a tool.

    Used by one thread at a time; the account is one thread's for all matchers that share it.

    Attributes:
        failure: why the output cannot go on, None while it can. The guide took a step beyond
            llguidance's limits or ours, or its language goes on with what no allowed token holds.
            From then on only stop tokens are allowed, but the output does not belong to the
            language.
        seconds: CPU time that the latest mask took.
        ahead_seconds: CPU time of those that were computed ahead with it.
    """

    def __init__(
        self,
        language: Language,
        branches: Sequence[Branch],
        vocabulary: Vocabulary,
        stop_token_ids: frozenset[int],
        account: Account,
    ) -> None:
        """Begins an output.

        Args:
            language: what refusals name.
            branches: all ways in which it may begin.
            vocabulary: the model's.
            stop_token_ids: what may end it.
            account: of the request.
        """
        self._language = language
        self._branches = list(branches)
        self._stop_token_ids = stop_token_ids
        self._ends = token_bits(stop_token_ids, vocabulary.size)
        self._others = ~self._ends
        self._account = account
        self.failure: InvalidArgumentError | None = None
        self.seconds = 0.0
        self.ahead_seconds = 0.0

    @property
    def expected_seconds(self) -> float:
        """What the next mask may take: as much as the latest, or the latest of the account."""
        return max(self.seconds, self._account.latest_mask_seconds)

    def advance(self, token_ids: Sequence[int], row: torch.Tensor, *, may_end: bool = True) -> None:
        """Goes on by the tokens that were chosen, and fills the next one's mask: see fill_mask."""
        started = time.thread_time()
        for token_id in token_ids:
            self.accept(token_id)
        self.fill_mask(row, may_end=may_end)
        self.seconds = self._account.latest_mask_seconds = time.thread_time() - started

    def look_ahead(self, token_ids: Sequence[int], rows: Sequence[torch.Tensor]) -> int:
        """Fills the masks after each of some tokens, should they be chosen.

        Returns:
            How many: it ends at what cannot be chosen, and where it takes long.
        """
        self.ahead_seconds = 0.0
        if not token_ids:
            return 0
        started = time.thread_time()
        ahead = copy.copy(self)
        ahead._branches = [branch.copy() for branch in self._branches]
        count = 0
        for token_id, row in zip(token_ids, rows, strict=True):
            ahead.accept(token_id)
            ahead.fill_mask(row)
            is_late = time.thread_time() - started > MAX_AHEAD_SECONDS
            if ahead.failure is not None or is_late or token_id in self._stop_token_ids:
                break
            count += 1
        self.ahead_seconds = time.thread_time() - started
        return count

    def charge(self) -> None:
        """Has the account pay for the latest mask, and fails where it costs more than it may."""
        account = self._account
        account.mask_count += 1
        account.mask_seconds += self.seconds + self.ahead_seconds
        limit = MASK_CREDIT_SECONDS + SECONDS_PER_MASK * account.mask_count
        if self.seconds > MAX_MASK_SECONDS:
            self._fail_for_cost(f"one token took {self.seconds:.3g} s", MAX_MASK_SECONDS)
        elif account.mask_seconds > limit:
            count = account.mask_count
            self._fail_for_cost(f"{count} tokens took {account.mask_seconds:.3g} s", limit)

    def fill_mask(self, row: torch.Tensor, *, may_end: bool = True) -> None:
        """Sets the bits of the tokens that may come next, and clears all others.

        Lets go of the interpreter's lock while it computes: some 10 microseconds as a rule, half a
        second at worst.

        Args:
            row: [ceil(vocabulary_size / 32)] int32 on the CPU, contiguous; filled.
            may_end: False allows stop tokens only where the language has nothing else.
        """
        if self.failure is None:
            is_whole = self._fill(row)
            row &= self._others
            if is_whole:
                if may_end or not row.any():
                    row |= self._ends
            elif not row.any():
                self._fail()
        if self.failure is not None:
            row.copy_(self._ends)

    def accept(self, token_id: int) -> None:
        """Goes on by the token that was chosen; a stop token changes nothing."""
        if token_id in self._stop_token_ids or self.failure is not None:
            return
        after = (branch.after(token_id) for branch in self._branches)
        if branches := [branch for branch in after if branch is not None]:
            self._branches = branches
        else:
            self._fail()

    def _fill(self, row: torch.Tensor) -> bool:
        """Fills a row with what any branch allows, and says whether the output may be one's end."""
        first, *others = self._branches
        is_whole = first.fill(row)
        for branch in others:
            more = torch.empty_like(row)
            is_whole |= branch.fill(more)
            row |= more
        return is_whole

    def _fail_for_cost(self, cost: str, limit: float) -> None:
        self.failure = self.failure or _refusal(
            self._language, f"takes too long to follow: {cost}; the limit is {limit:.3g} s"
        )

    def _fail(self) -> None:
        errors = (branch.error() for branch in self._branches)
        reason = next(filter(None, errors), "no token of the vocabulary can follow")
        self.failure = _unfollowable(self._language, _fault(self._language, reason))


def _languages(guide: OutputGuide) -> tuple[Language, ...]:
    """Returns what is compiled of a guide, what refusals name first."""
    if isinstance(guide, Guide):
        return (guide,)
    return (guide.calls,) if guide.instead is None else (guide.calls, guide.instead)


def _source(language: Language) -> str:
    if isinstance(language, Guide):
        return language.source
    return "".join(tool.parameters for tool in language.callable_tools.values())


def _tried(guide: Guide) -> str | Fault:
    """Returns the grammar of a guide, or why it cannot be compiled."""
    try:
        grammar = guide_grammar(guide)
    except ValueError as error:  # a schema that is no JSON object
        return _fault(guide, str(error))
    reason = _trial(grammar)
    return _fault(guide, reason) if reason else grammar


def _tried_calls(calls: ToolCalls, special_id: Callable[[str], int]) -> str | Fault:
    """Returns the grammar of calls, or why it cannot be compiled.

    A schema that cannot be enforced, and need not be, stands for any object; where all of them
    together are too much, each that need not be.
    """
    tools = calls.callable_tools
    try:
        arguments = {tool.name: arguments_grammar(tool, len(tools)) for tool in tools.values()}
    except ValueError as error:  # a schema with what is Python's JSON alone
        return _fault(calls, str(error))
    envelope, is_single = calls.envelope, calls.is_single
    whole = calls_grammar(envelope, arguments, is_single=is_single)
    try:
        *reasons, reason = _trials([*arguments.values(), whole])
    except TooCostlyError as error:
        return _costly_tools(tools, error)
    for (index, tool), own_reason in zip(tools.items(), reasons, strict=True):
        if own_reason and tool.is_strict:
            schema = Guide("json_schema", tool.parameters)
            fault = _fault(schema, own_reason)
            return Fault(f"of {tool.name}, {fault.reason}", f"[{index}].parameters{fault.place}")
        if own_reason:
            arguments[tool.name] = ANY_OBJECT
    if any(reasons):
        reason = _trial(calls_grammar(envelope, arguments, is_single=is_single))
    if reason:
        arguments |= {tool.name: ANY_OBJECT for tool in tools.values() if not tool.is_strict}
        reason = _trial(calls_grammar(envelope, arguments, is_single=is_single))
    if reason:
        return _fault(calls, reason)
    return calls_grammar(envelope, arguments, is_single=is_single, special_id=special_id)


def _costly_tools(tools: Mapping[int, ToolDefinition], error: TooCostlyError) -> Fault:
    """Returns which tool broke a limit; of what all together broke, only that they did."""
    if error.index >= len(tools):
        return Fault(f"all tools together take more than {error.limit} to compile")
    place, tool = [*tools.items()][error.index]
    cost = str(error)
    if error.limit == CPU_TIME:
        cost = (
            f"it takes {error.seconds:.1f} s of CPU time or more to compile;"
            f" all tools together may take {guide_trial.CPU_SECONDS} s"
        )
    return Fault(f"of {tool.name}, {cost}", f"[{place}].parameters")


def _trial(grammar: str) -> str:
    """Returns why a grammar cannot be compiled; errors as of _trials."""
    return _trials([grammar])[0]


def _trials(grammars: Sequence[str]) -> list[str]:
    """Returns why each grammar cannot be compiled, empty where it can; see guide_trial.

    Raises:
        TooCostlyError: one broke a limit.
        OverloadedError: the trial has not had its CPU time yet: no fault of the grammars'.
    """
    program = [sys.executable, "-I", str(Path(guide_trial.__file__))]
    sent = json.dumps(grammars).encode()
    try:
        trial = subprocess.run(  # noqa: S603 - our own module
            program, input=sent, capture_output=True, timeout=TRIAL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        logger.warning("guide_trial_failed", error=str(error))
        raise OverloadedError(
            "the machine is too busy to compile the guide", retry_after=RETRY_AFTER_SECONDS
        ) from error
    told = [json.loads(line) for line in trial.stdout.splitlines()]
    if len(told) <= len(grammars):
        raise _broken_limit(trial, [seconds for _, seconds in told])
    return [str(reason) for reason, _ in told[1:]]


def _broken_limit(
    trial: subprocess.CompletedProcess[bytes], ends: Sequence[float]
) -> TooCostlyError:
    """Returns which limit a trial has met; `ends` are its CPU seconds as it has told them."""
    error = trial.stderr.decode(errors="replace")[-MAX_REASON_LENGTH:]
    logger.warning("guide_trial_failed", exit_status=trial.returncode, error=error)
    if trial.returncode == -signal.SIGXCPU:
        clock = [*(ends or [0.0]), guide_trial.CPU_SECONDS]
        took = [after - before for before, after in pairwise(clock)]
        return TooCostlyError(CPU_TIME, took.index(max(took)), max(took))
    limit = STACK if trial.returncode == -signal.SIGSEGV else MEMORY
    return TooCostlyError(limit, max(0, len(ends) - 1))


def _keep(kept: OrderedDict[Language, Kept], guide: Language, value: Kept) -> None:
    """Adds what is known of a guide; lets go of what was not asked for longest."""
    kept[guide] = value
    if len(kept) > CACHED_GUIDE_COUNT:
        kept.popitem(last=False)


def _fault(language: Language, message: str) -> Fault:
    """Returns llguidance's message in words for who wrote the guide."""
    if "NoExtensionBias" in message:
        return Fault("no text belongs to its language")
    if isinstance(language, Guide) and language.kind == "json_schema":
        return explained(message, language.source)
    if message.startswith(REGEX_ERROR):
        return Fault(pattern_complaint(message))
    stated = re.search(r"^error: (.*)", message, re.MULTILINE)
    return Fault(stated[1] if stated else message.split("\n", 1)[0])


def _unfollowable(language: Language, fault: Fault) -> InvalidArgumentError:
    reason = fault.reason[:MAX_REASON_LENGTH]
    return _refusal(language, f"cannot be followed: {reason}", fault.place)


def _refusal(language: Language, predicate: str, place: str = "") -> InvalidArgumentError:
    if isinstance(language, ToolCalls):
        name, field = "the guide of the tools", "chat.tools"
    else:
        name, field = NAMES[language.kind], f"guided.{language.kind}"
    return InvalidArgumentError(f"{name} {predicate}", field=f"{field}{place}")
