"""Guided decoding: guides compiled to matchers, which say what tokens may come next.

llguidance does the matching. A "grammar" is in its dialect of Lark (llguidance, docs/syntax.md); a
"regex" is one of Rust's regex crate, without look-around, and matches the whole output; a
"json_schema" is one of Draft 2020-12 as far as llguidance enforces it, and refused where it does
not; schemas.py leaves out before what asks for nothing. JSON has whitespace between its tokens as
llama.cpp's grammars have it, at most a line feed and 20 blanks: where any whitespace may follow, a
weak model writes nothing else to its last token.
(llguidance 0.7.29, which TensorRT-LLM 1.2.1 pins, ignores this limit.)
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import structlog
import torch
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from llm_service.engines import guide_trial
from llm_service.engines.admission import RETRY_AFTER_SECONDS, engine_dead
from llm_service.engines.base import Account
from llm_service.engines.schemas import REGEX_ERROR, Fault, explained, lean, pattern_complaint
from llm_service.sampling import Guide
from llm_service.tokenizer import MESSAGE_END, Tokenizer
from protos.errors import InvalidArgumentError, OverloadedError

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

logger = structlog.get_logger()

Kept = TypeVar("Kept")

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
# CPU time. A mask takes some 10 microseconds as a rule, and some 10 milliseconds where a schema is
# large or the tokens before it were new to its lexer. Where a grammar is ambiguous it takes more
# with every token: llguidance's limits, which count, let it come to half a second.
MAX_MASK_SECONDS = 0.2
# What a request may use up besides, over all its choices: so much at once, and so much a token.
MASK_CREDIT_SECONDS = 1.0
SECONDS_PER_MASK = 0.01
# All that "x-guidance" in a schema could change, so that the output is JSON and fits the schema.
JSON_OPTIONS: JsonCompileOptions = {
    "whitespace_pattern": r" |\n[ \t]{0,20}",
    "item_separator": ",",
    "key_separator": ":",
    "coerce_one_of": False,
    "lenient": False,
}


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
        self._compiling: dict[Guide, _Compilation] = {}
        self._compiled: OrderedDict[Guide, LLMatcher] = OrderedDict()
        self._refused: OrderedDict[Guide, Fault] = OrderedDict()
        self._is_closed = False

    async def matcher(
        self, guide: Guide, stop_token_ids: frozenset[int], account: Account
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
        if not stop_token_ids:
            raise _refusal(
                guide, "needs a token that ends the output, and the request ignores them all"
            )
        compiled = await self.compiled(guide)
        return await asyncio.get_running_loop().run_in_executor(
            self._matcher_thread, self._matcher, guide, compiled, stop_token_ids, account
        )

    async def compiled(self, guide: Guide) -> LLMatcher:
        """Returns a guide's compiled form, which is kept; errors as of `matcher`."""
        if self._is_closed:
            raise engine_dead()
        if (size := len(guide.source.encode())) > MAX_SOURCE_BYTE_COUNT:
            raise _refusal(guide, f"has {size} bytes; it must have at most {MAX_SOURCE_BYTE_COUNT}")
        compiled = await self._known(guide)
        if isinstance(compiled, Fault):
            raise _unfollowable(guide, compiled)
        return compiled

    def close(self) -> None:
        """Ends the threads, once they have done what they are at; what waits for them fails."""
        self._is_closed = True
        self._compiler_thread.shutdown(wait=False)
        self._matcher_thread.shutdown(wait=False)

    def _matcher(
        self, guide: Guide, compiled: LLMatcher, stop_token_ids: frozenset[int], account: Account
    ) -> TokenMatcher:
        own = compiled.deep_copy()
        return TokenMatcher(guide, own, self._vocabulary.result(), stop_token_ids, account)

    async def _known(self, guide: Guide) -> LLMatcher | Fault:
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

    def _begin(self, guide: Guide) -> _Compilation:
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
        self, guide: Guide, work: Future[LLMatcher | Fault]
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

    def _compile(self, guide: Guide) -> LLMatcher | Fault:
        if self._is_closed:
            raise engine_dead()
        try:
            grammar = _grammar(guide)
        except ValueError as error:  # a schema that is no JSON object
            return _fault(guide, str(error))
        if reason := _trial(grammar):
            return _fault(guide, reason)
        compiled = LLMatcher(
            self._vocabulary.result().tokenizer, grammar, log_level=0, limits=guide_trial.LIMITS
        )
        # The first mask is computed on a copy: a stepped matcher takes longer to copy.
        reason = guide_trial.first_error(compiled.deep_copy())
        return _fault(guide, reason) if reason else compiled


class Vocabulary:
    """The tokens as llguidance wants them.

    Special tokens, images' and those without a text have no bytes here, so that no language holds
    them.

    Attributes:
        tokenizer: llguidance's; its end token is the chat template's.
        ordinary: [ceil(vocabulary_size / 32)] int32, the bits of the tokens that have bytes.
        size: the model's vocabulary size, at least the tokenizer's.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.size = size
        self._encode = tokenizer.encode_plain
        self.tokens = [_text_bytes(tokenizer, token_id) for token_id in range(size)]
        self.ordinary = token_bits((i for i, token in enumerate(self.tokens) if token), size)
        self.eos_token_id = tokenizer.special_id(MESSAGE_END)
        self.bos_token_id = None
        self.tokens[self.eos_token_id] = MESSAGE_END.encode()
        self.special_token_ids = [self.eos_token_id]
        self.tokenizer = LLTokenizer(TokenizerWrapper(self))

    def __call__(self, text: bytes) -> list[int]:
        """Encodes a text, as TokenizerWrapper asks its tokenizers to."""
        return self._encode(text.decode())


class TokenMatcher:
    """The place of one output within its guide's language.

    Wherever the output may end, all of the request's stop tokens are allowed, and nowhere else:
    what comes before one always belongs to the language, also where a request names an ordinary
    token as a stop token. Special tokens, images' tokens and ids without a text are never allowed.

    Used by one thread at a time; the account is one thread's for all matchers that share it.

    Attributes:
        failure: why the output cannot go on, None while it can. The guide took a step beyond
            llguidance's limits or ours, or its language goes on with what no allowed token holds.
            From then on only stop tokens are allowed, but the output does not belong to the
            language.
        seconds: CPU time that the latest mask took.
    """

    def __init__(
        self,
        guide: Guide,
        matcher: LLMatcher,
        vocabulary: Vocabulary,
        stop_token_ids: frozenset[int],
        account: Account,
    ) -> None:
        self._guide = guide
        self._matcher = matcher
        self._stop_token_ids = stop_token_ids
        self._ends = token_bits(stop_token_ids, vocabulary.size)
        self._inner = vocabulary.ordinary & ~self._ends
        self._account = account
        self.failure: InvalidArgumentError | None = None
        self.seconds = 0.0

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

    def charge(self) -> None:
        """Has the account pay for the latest mask, and fails where it costs more than it may."""
        account = self._account
        account.mask_count += 1
        account.mask_seconds += self.seconds
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
            self._matcher.unsafe_compute_mask_ptr(row.data_ptr(), row.numel() * row.element_size())
            row &= self._inner
            if self._matcher.is_accepting():
                if may_end or not row.any():
                    row |= self._ends
            elif self._matcher.is_error() or not row.any():
                self._fail()
        if self.failure is not None:
            row.copy_(self._ends)

    def accept(self, token_id: int) -> None:
        """Goes on by the token that was chosen; a stop token changes nothing."""
        if token_id in self._stop_token_ids or self.failure is not None:
            return
        if not self._matcher.consume_token(token_id):
            self._fail()

    def _fail_for_cost(self, cost: str, limit: float) -> None:
        self.failure = self.failure or _refusal(
            self._guide, f"takes too long to follow: {cost}; the limit is {limit:.3g} s"
        )

    def _fail(self) -> None:
        reason = self._matcher.get_error() or "no token of the vocabulary can follow"
        self.failure = _unfollowable(self._guide, _fault(self._guide, reason))


def token_bits(token_ids: Iterable[int], vocabulary_size: int) -> torch.Tensor:
    """Returns [ceil(vocabulary_size / 32)] int32, in which bit i % 32 of number i // 32 is id i."""
    bits = bytearray(4 * -(-vocabulary_size // 32))
    for token_id in token_ids:
        bits[token_id // 8] |= 1 << token_id % 8
    return torch.frombuffer(bits, dtype=torch.int32)


def unpacked(bits: torch.Tensor, vocabulary_size: int) -> torch.Tensor:
    """Returns [..., vocabulary_size] bool of token_bits' [..., ceil(vocabulary_size / 32)]."""
    flags = bits[..., None] >> torch.arange(32, dtype=torch.int32, device=bits.device)
    return (flags & 1).bool().flatten(-2)[..., :vocabulary_size]


def _text_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    return b"" if tokenizer.is_special(token_id) else tokenizer.token_bytes(token_id)


def _grammar(guide: Guide) -> str:
    match guide.kind:
        case "json_object":
            return LLMatcher.grammar_from_json_schema({"type": "object"}, overrides=JSON_OPTIONS)
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(lean(guide.source), overrides=JSON_OPTIONS)
        case "regex":
            return LLMatcher.grammar_from_regex(guide.source)
        case "grammar":
            return LLMatcher.grammar_from_lark(guide.source)


def _trial(grammar: str) -> str:
    """Returns why the grammar cannot be compiled; see guide_trial.

    Raises:
        OverloadedError: the trial has not had its CPU time yet: no fault of the grammar's.
    """
    program = [sys.executable, "-I", str(Path(guide_trial.__file__))]
    try:
        trial = subprocess.run(
            program, input=grammar.encode(), capture_output=True, timeout=TRIAL_SECONDS, check=True
        )
    except subprocess.CalledProcessError as error:
        logger.warning("guide_trial_failed", error=str(error))
        return "it takes too much time or memory to compile"
    except subprocess.TimeoutExpired as error:
        logger.warning("guide_trial_failed", error=str(error))
        raise OverloadedError(
            "the machine is too busy to compile the guide", retry_after=RETRY_AFTER_SECONDS
        ) from error
    return trial.stdout.decode()


def _keep(kept: OrderedDict[Guide, Kept], guide: Guide, value: Kept) -> None:
    """Adds what is known of a guide; lets go of what was not asked for longest."""
    kept[guide] = value
    if len(kept) > CACHED_GUIDE_COUNT:
        kept.popitem(last=False)


def _fault(guide: Guide, message: str) -> Fault:
    """Returns llguidance's message in words for who wrote the guide."""
    if "NoExtensionBias" in message:
        return Fault("no text belongs to its language")
    if guide.kind == "json_schema":
        return explained(message, guide.source)
    if message.startswith(REGEX_ERROR):
        return Fault(pattern_complaint(message))
    stated = re.search(r"^error: (.*)", message, re.MULTILINE)
    return Fault(stated[1] if stated else message.split("\n", 1)[0])


def _unfollowable(guide: Guide, fault: Fault) -> InvalidArgumentError:
    reason = fault.reason[:MAX_REASON_LENGTH]
    return _refusal(guide, f"cannot be followed: {reason}", fault.place)


def _refusal(guide: Guide, predicate: str, place: str = "") -> InvalidArgumentError:
    field = f"guided.{guide.kind}{place}"
    return InvalidArgumentError(f"{NAMES[guide.kind]} {predicate}", field=field)
