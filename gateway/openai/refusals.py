"""A malformed field as the sentence and the JSON path that its client is told."""

from __future__ import annotations

from pydantic_core import ErrorDetails

from protos.errors import InvalidArgumentError, UnsupportedFieldError

MAX_PARAM_LENGTH = 200
MAX_SHOWN_LENGTH = 64
UNSUPPORTED = "unsupported_field"

# What pydantic finds, by its name for it; what our own validators find is a sentence already.
SENTENCES = {
    "bool_type": "{subject} must be true or false",
    "dict_type": "{subject} must be an object",
    "extra_forbidden": "this server does not know the field '{name}'",
    "finite_number": "{subject} must be a finite number",
    "float_type": "{subject} must be a number",
    "greater_than": "{subject} is {input}; it must be above {gt}",
    "greater_than_equal": "{subject} is {input}; it must be at least {ge}",
    "int_type": "{subject} must be a whole number",
    "less_than": "{subject} is {input}; it must be below {lt}",
    "list_type": "{subject} must be a list",
    "literal_error": "{subject} must be {expected}",
    "missing": "{subject} is missing",
    "model_type": "{subject} must be an object",
    "string_type": "{subject} must be a string",
    "too_long": "{subject} has {actual_length} entries; it must have at most {max_length}",
    UNSUPPORTED: "this server does not support the field '{name}'",
}
# Names that do not speak for themselves in a sentence; others are taken as they are.
SUBJECTS = {
    "cache_salt": "the cache salt",
    "content": "a message's content",
    "detail": "an image's detail",
    "ignore_eos": "the switch for going on past end tokens",
    "image_url": "an image",
    "include_usage": "the switch for the usage",
    "json_schema": "the JSON Schema and its name",
    "logit_bias": "the logit bias",
    "logprobs": "the switch for log probabilities",
    "max_completion_tokens": "the most tokens to generate",
    "max_dynamic_patch": "the tile cap",
    "max_tokens": "the most tokens to generate",
    "messages": "the list of messages",
    "min_p": "min-p",
    "min_tokens": "the least tokens to generate",
    "model": "the model's name",
    "n": "the number of choices",
    "name": "the JSON Schema's name",
    "role": "a message's role",
    "schema": "the JSON Schema",
    "skip_special_tokens": "the switch for special tokens",
    "stop": "the list of stop strings",
    "stop_token_ids": "the list of stop tokens",
    "stream": "the switch for a stream",
    "strict": "the switch for strictness",
    "top_k": "top-k",
    "top_logprobs": "the number of alternatives to a token",
    "top_p": "top-p",
    "url": "an image's URL",
}
ENTRIES = {
    "content": "a content part",
    "logit_bias": "a token's bias",
    "messages": "a message",
    "stop": "a stop string",
    "stop_token_ids": "a stop token",
}


def refusal(detail: ErrorDetails) -> InvalidArgumentError:
    """Returns the error for the first thing that pydantic found wrong."""
    cls = UnsupportedFieldError if detail["type"] == UNSUPPORTED else InvalidArgumentError
    return cls(_sentence(detail), field=_param(detail))


def _sentence(detail: ErrorDetails) -> str:
    sentence = SENTENCES.get(detail["type"])
    if sentence is None:
        return detail["msg"]
    return sentence.format(
        subject=_subject(detail["loc"]),
        name=str(detail["loc"][-1])[:MAX_SHOWN_LENGTH] if detail["loc"] else "",
        input=_shown(detail["input"]),
        **detail.get("ctx", {}),
    )


def _shown(value: object) -> str:
    """Returns a number as it was written; all else stays unsaid, for it may be anything."""
    return str(value)[:MAX_SHOWN_LENGTH] if isinstance(value, int | float) else ""


def _subject(location: tuple[int | str, ...]) -> str:
    if not location:
        return "the body"
    *above, name = location
    if above and above[-1] in ENTRIES:
        return ENTRIES[str(above[-1])]
    return SUBJECTS.get(str(name)) or f"the {str(name).replace('_', ' ')}"


def _param(detail: ErrorDetails) -> str:
    """Returns the JSON path of an error, e.g. `messages[0].content[1].image_url.url`."""
    keys = [*detail["loc"]]
    if field := detail.get("ctx", {}).get("field"):
        keys.append(field)
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return path.removeprefix(".")[:MAX_PARAM_LENGTH]
