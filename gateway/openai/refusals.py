"""A malformed field as the sentence and the JSON path that its client is told."""

from __future__ import annotations

from pydantic_core import ErrorDetails

from protos.errors import InvalidArgumentError

MAX_PARAM_LENGTH = 200
MAX_SHOWN_LENGTH = 64

# What pydantic finds, by its name for it; what our own validators find is a sentence already.
SENTENCES = {
    "bool_type": "{subject} is {shown}; it must be true or false",
    "dict_type": "{subject} is {shown}; it must be an object",
    "finite_number": "{subject} must be a finite number",
    "float_type": "{subject} is {shown}; it must be a number",
    "greater_than": "{subject} is {shown}; it must be above {gt}",
    "greater_than_equal": "{subject} is {shown}; it must be at least {ge}",
    "int_type": "{subject} is {shown}; it must be a whole number",
    "less_than": "{subject} is {shown}; it must be below {lt}",
    "list_type": "{subject} is {shown}; it must be a list",
    "literal_error": "{subject} is {shown}; it must be {expected}",
    "missing": "{subject} is missing",
    "model_type": "{subject} is {shown}; it must be an object",
    "string_type": "{subject} is {shown}; it must be a string",
    "too_short": "{subject} is empty",
    "too_long": "{subject} has {actual_length} entries; it must have at most {max_length}",
}
# Where a value is one of few words, the one that was sent is shown; others may be anything.
WORDS = frozenset({"literal_error"})
# Names that do not speak for themselves in a sentence; others are taken as they are.
SUBJECTS = {
    "add_generation_prompt": "the switch for a new turn",
    "add_special_tokens": "the switch for the beginning token",
    "arguments": "the text of the arguments",
    "allowed_tools": "the tools that are allowed",
    "best_of": "the number of answers to choose from",
    "cache_salt": "the cache salt",
    "choice": "the list of choices",
    "content": "a message's content",
    "continue_final_message": "the switch for going on with the last message",
    "continuous_usage_stats": "the switch for the usage in each chunk",
    "data": "the image in base64",
    "description": "the description",
    "detail": "an image's detail",
    "disable_parallel_tool_use": "the switch for one call at most",
    "echo": "the switch for an echo",
    "function": "the function",
    "function_call": "the call of a function",
    "functions": "the list of functions",
    "grammar": "the grammar",
    "guided_choice": "the list of choices",
    "guided_grammar": "the grammar",
    "guided_json": "the JSON Schema",
    "guided_regex": "the regular expression",
    "ignore_eos": "the switch for going on past end tokens",
    "image_url": "an image",
    "include_usage": "the switch for the usage",
    "input_schema": "the JSON Schema of the input",
    "instructions": "the text of the instructions",
    "is_error": "the switch for an error",
    "json_object": "the switch for any JSON object",
    "json_schema": "the JSON Schema and its name",
    "logit_bias": "the logit bias",
    "logprobs": "the wish for log probabilities",
    "max_completion_tokens": "the most tokens to generate",
    "max_dynamic_patch": "the tile cap",
    "max_output_tokens": "the most tokens to generate",
    "max_tokens": "the most tokens to generate",
    "messages": "the list of messages",
    "min_p": "min-p",
    "min_tokens": "the least tokens to generate",
    "model": "the model's name",
    "mode": "the mode of the choice",
    "n": "the number of choices",
    "name": "the name of a function",
    "parallel_tool_calls": "the switch for several calls",
    "parameters": "the JSON Schema of the arguments",
    "regex": "the regular expression",
    "return_token_strs": "the switch for the texts of tokens",
    "role": "a message's role",
    "schema": "the JSON Schema",
    "skip_special_tokens": "the switch for special tokens",
    "source": "the source of an image",
    "stop": "the list of stop strings",
    "stop_sequences": "the list of stop strings",
    "stop_token_ids": "the list of stop tokens",
    "stream": "the switch for a stream",
    "stream_options": "the object of stream options",
    "strict": "the switch for strictness",
    "structured_outputs": "the form of the answer",
    "system": "the system's text",
    "tokens": "the list of tokens",
    "tool_calls": "the list of tool calls",
    "tool_choice": "the choice of tools",
    "tools": "the list of tools",
    "top_k": "top-k",
    "top_logprobs": "the number of alternatives to a token",
    "top_p": "top-p",
    "url": "an image's URL",
}
ENTRIES = {
    "choice": "a choice",
    "content": "a content part",
    "functions": "a function",
    "guided_choice": "a choice",
    "include": "an entry of the list",
    "input": "an item",
    "logit_bias": "a token's bias",
    "messages": "a message",
    "metadata": "a value of the metadata",
    "output": "a content part",
    "stop": "a stop string",
    "stop_sequences": "a stop string",
    "stop_token_ids": "a stop token",
    "tool_calls": "a tool call",
    "tools": "a tool",
}


def refusal(detail: ErrorDetails) -> InvalidArgumentError:
    """Returns the error for the first thing that pydantic found wrong."""
    return InvalidArgumentError(_sentence(detail), field=_param(detail))


def shown(value: object) -> str:
    """Returns a value for a sentence: a word or a number as it was sent, else what it is."""
    return f"'{value[:MAX_SHOWN_LENGTH]}'" if isinstance(value, str) else shown_kind(value)


def shown_kind(value: object) -> str:
    """Returns the same, but of a string only that it is one: it may be anything."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return _number(value)
    names: dict[type, str] = {str: "a string", list: "a list"}
    return names.get(type(value), "an object")


def _number(value: int | float) -> str:
    try:
        return str(value)[:MAX_SHOWN_LENGTH]
    except ValueError:  # Python writes no whole number of more than 4300 digits
        return "a number of thousands of digits"


def _sentence(detail: ErrorDetails) -> str:
    sentence = SENTENCES.get(detail["type"])
    if sentence is None:
        return detail["msg"]
    show = shown if detail["type"] in WORDS else shown_kind
    return sentence.format(
        subject=_subject(detail["loc"]),
        shown=show(detail["input"]),
        **detail.get("ctx", {}),
    )


def _subject(location: tuple[int | str, ...]) -> str:
    if not location:
        return "the body"
    *above, name = location
    if above and above[-1] in ENTRIES:
        return ENTRIES[str(above[-1])]
    if name == "name" and above[-1:] == ["json_schema"]:
        return "the JSON Schema's name"
    if name == "input" and above:
        return "the input of a call"
    return SUBJECTS.get(str(name)) or f"the {str(name).replace('_', ' ')}"


def _param(detail: ErrorDetails) -> str:
    """Returns the JSON path of an error, e.g. `messages[0].content[1].image_url.url`."""
    keys = [*detail["loc"]]
    if field := detail.get("ctx", {}).get("field"):
        keys.append(field)
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return path.removeprefix(".")[:MAX_PARAM_LENGTH]
