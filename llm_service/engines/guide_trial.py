"""A compiler's dry run: a program that compiles guides under limits and says what is wrong.

llguidance bounds its work by counts, yet there are small guides that take it minutes, gigabytes or
more stack than there is ("multipleOf": 999983; some thousand rules that name each other). Here that
ends a child process instead of the service. The program imports llguidance alone and uses a
vocabulary of single bytes, so that a trial takes a tenth of a second.

Standard input: a JSON list of grammars in llguidance's own JSON form. Standard output: a line of
JSON when the trial begins and after each grammar, with why that is refused, empty where it is not,
and the CPU seconds of the process so far. Fewer lines mean that the next grammar broke a limit; the
exit status tells which.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import threading
import time

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

CPU_SECONDS = 2
MEMORY_BYTE_COUNT = 1 << 30
# Half of a thread's usual stack: what passes here has room to spare in the service.
STACK_BYTE_COUNT = 4 << 20
# The fuels keep one step of a matcher below some 50 ms; the default ones allow a second.
LIMITS = LLParserLimits(initial_lexer_fuel=100_000)


class SingleBytes:
    """A tokenizer as TokenizerWrapper wants it: token 0 ends, token b + 1 is the byte b."""

    eos_token_id = 0
    bos_token_id = None
    special_token_ids = (0,)
    tokens = (b"<end>", *(bytes([byte]) for byte in range(256)))

    def __call__(self, text: bytes) -> list[int]:
        return [byte + 1 for byte in text]


def first_error(matcher: LLMatcher) -> str:
    """Returns why nothing can be generated with a new matcher; empty if something can."""
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher.get_error()


def _set_limits() -> None:
    # Where both are the same, the end is SIGKILL, which may be anybody's.
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # macOS does not limit memory
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTE_COUNT, MEMORY_BYTE_COUNT))
    threading.stack_size(STACK_BYTE_COUNT)


def refusal(grammar: str) -> str:
    """Returns why a grammar is refused; empty if it is not."""
    tokenizer = LLTokenizer(TokenizerWrapper(SingleBytes()), slices=[])
    return first_error(LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS))


def _try(grammars: list[str]) -> None:
    _tell("")
    for grammar in grammars:
        _tell(refusal(grammar))


def _tell(reason: str) -> None:
    sys.stdout.write(json.dumps([reason, time.process_time()]) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Tries the grammars of the standard input."""
    _set_limits()
    trial = threading.Thread(target=_try, args=(json.load(sys.stdin.buffer),))
    trial.start()
    trial.join()


if __name__ == "__main__":
    main()
