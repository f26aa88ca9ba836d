"""What OpenAI's answers are made of, whole or streamed."""

from __future__ import annotations

import json
from typing import Any

from gateway.events import TokenLogprob, Usage

JSONObject = dict[str, Any]

LEAST_LOGPROB = -9999.0
DONE = b"data: [DONE]\n\n"
# json.dumps would make one of them each time.
_ASCII = json.JSONEncoder(separators=(",", ":"))
_COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def sse_event(data: JSONObject) -> bytes:
    """Returns a server-sent event."""
    return f"data: {in_ascii(data)}\n\n".encode()


def in_ascii(value: Any) -> str:
    """Returns JSON for an event.

    In ASCII: there are clients that take U+2028 and its like for the end of a line.
    """
    return _ASCII.encode(value)


def compact(value: Any) -> str:
    """Returns JSON without spaces."""
    return _COMPACT.encode(value)


def usage_json(usage: Usage) -> JSONObject:
    """Returns the usage of a whole answer."""
    details = {
        "cached_tokens": usage.cached_token_count,
        "image_tokens": usage.image_token_count,  # ours, not OpenAI's
    }
    counts = token_counts(usage.prompt_token_count, usage.output_token_count)
    return counts | {"prompt_tokens_details": details}


def token_counts(prompt: int, output: int) -> JSONObject:
    """Returns what is known of the usage while an answer is made."""
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


def token_text(token: bytes) -> str:
    r"""Returns a token as text; of a part of a character OpenAI shows the bytes as \xf0."""
    return token.decode(errors="backslashreplace")


def logprob_json(logprob: TokenLogprob) -> float:
    """Returns a token's log probability. JSON has no -inf: OpenAI's least is -9999.0."""
    return max(logprob.logprob, LEAST_LOGPROB)
