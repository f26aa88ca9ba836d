"""The fields that clients are known to send to /v1/responses, and what becomes of them here.

The names are those of OpenAI's Responses and of vLLM's. docs/clients.md prints the tables.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.openai.known_fields import (
    NO_FILES,
    NO_SOUND,
    TOP_LEVEL,
    Section,
    Served,
    hint,
    refused,
    served,
)

NOTHING_STORED = "leave it out, and send the whole conversation in 'input': nothing is stored here"
TEXT_FORMAT = "use 'text' with a 'format'"
OUTPUT_LIMIT = "use 'max_output_tokens'"
LOGPROBS = "use 'include' with 'message.output_text.logprobs'"
CHAT_ALONE = "use /v1/chat/completions, which has it"

RESPONSES = Section(
    "The request for a response",
    served("model", meaning="a name that `GET /v1/models` lists; empty or missing: the one served"),
    served(
        "input",
        meaning="a string, or items of the types `message` (which may be left out), `function_call`"
        " and `function_call_output`; those of the type `reasoning` are passed over",
    ),
    served("instructions", meaning="a system message before the input"),
    served("stream", meaning="OpenAI's events, in OpenAI's order"),
    served(
        "max_output_tokens",
        meaning="as OpenAI's; more than the context has room for are as many as it has",
    ),
    served(
        "temperature",
        "top_p",
        meaning="as OpenAI's, but **the default temperature is 0**; `top_p` is 1",
    ),
    served(
        "include",
        "top_logprobs",
        meaning="`message.output_text.logprobs` brings the log probabilities of a message's tokens,"
        " with up to 20 alternatives; the other words are about items that do not come from here",
    ),
    served("text", meaning="see below"),
    served(
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        meaning="those of the type `function`; `none`, `auto`, `required`, one function, or"
        " `allowed_tools`. `strict` is false unless it is given; see [tools](#tools)",
    ),
    served(
        "truncation",
        meaning="`disabled` or `auto`: in both cases a prompt that does not fit is refused",
    ),
    served(
        "metadata",
        "user",
        "safety_identifier",
        "prompt_cache_key",
        meaning="given back in the answer, and not used",
    ),
    served(
        "seed",
        "stop",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "top_k",
        "min_p",
        "ignore_eos",
        "skip_special_tokens",
        "stop_token_ids",
        "min_tokens",
        "logit_bias",
        "priority",
        "cache_salt",
        meaning="not OpenAI's; as those of /v1/chat/completions",
    ),
    hint("stream_options", "request_id", "media_io_kwargs", "access_programs", "timeout"),
    hint("store", "reasoning", "service_tier", "prompt_cache_retention", "prompt_cache_options"),
    hint("max_tool_calls", "context_management", "background_options", "image", "verbosity"),
    refused("previous_response_id", "conversation", way_on=NOTHING_STORED),
    refused(
        "background",
        harmless=(False,),
        way_on="leave it out: the answer is sent to who asks, at once or as a stream",
    ),
    refused("prompt", way_on="send its text in 'instructions' and 'input'"),
    refused("moderation", way_on="leave it out: nothing is moderated here"),
    refused("messages", "inputs", "input_ids", "previous_input_messages", way_on="use 'input'"),
    refused("system", harmless=("",), way_on="use 'instructions'"),
    refused("images", way_on="use content parts of the type 'input_image'"),
    refused("response_format", "json_schema", "guided_json", way_on=TEXT_FORMAT),
    refused("format", harmless=("",), way_on=TEXT_FORMAT),
    refused("structured_outputs", "guided_regex", "guided_choice", way_on=CHAT_ALONE),
    refused("guided_grammar", "grammar", "ebnf", "regex", harmless=("",), way_on=CHAT_ALONE),
    refused("allowed_token_ids", way_on="use /v1/chat/completions with a 'regex'"),
    refused("max_tokens", "max_completion_tokens", "max_new_tokens", way_on=OUTPUT_LIMIT),
    refused("max_length", "n_predict", "num_predict", harmless=(-1,), way_on=OUTPUT_LIMIT),
    refused("logprobs", harmless=(False,), way_on=LOGPROBS),
    refused("n_probs", harmless=(0,), way_on=LOGPROBS),
    refused(
        "return_token_ids",
        "return_tokens_as_token_ids",
        "return_tokens",
        harmless=(False,),
        way_on=LOGPROBS,
    ),
    refused("prompt_logprobs", way_on="use /v1/completions with 'echo' and 'logprobs'"),
    refused("n", "best_of", harmless=(1,), way_on="ask as many times"),
    refused("functions", "function_call", way_on="use 'tools' and 'tool_choice'"),
    refused("enable_response_messages", harmless=(False,), way_on="read 'output'"),
    refused("session_params", way_on=NOTHING_STORED),
    refused("extra_body", "options", way_on="put its fields beside 'input'"),
)
# What becomes of any other field that a chat's request may have.
CHATS_FIELDS = Section("a chat's", *(row for row in TOP_LEVEL.rows if not isinstance(row, Served)))

STREAM_OPTIONS = Section(
    "`stream_options`",
    hint("include_usage"),
    refused("include_obfuscation", harmless=(False,), way_on="leave it out: nothing is padded"),
)

TEXT = Section(
    "`text`",
    served("format", meaning="what the answer must be; see below"),
    hint("verbosity"),
)

FORMAT = Section(
    "`text.format`",
    served(
        "type",
        "schema",
        "name",
        "description",
        "strict",
        meaning="`text`, `json_object` or `json_schema`, whose schema stands beside the type; see"
        " [answers of a given form](#answers-of-a-given-form)",
    ),
    refused("json_schema", way_on="put its fields beside 'type'"),
)

TOOL = Section(
    "`tools[]`",
    served("type", "name", "description", "parameters", "strict", meaning="as OpenAI's"),
    hint("defer_loading", "allowed_callers", "output_schema", "async"),
    refused("function", way_on="put its fields beside 'type'"),
)

ITEM = Section(
    "`input[]`",
    served("type", "role", "content", meaning="of a message. Only a user's may have images"),
    served("name", "arguments", meaning="of a `function_call`, which is the assistant's"),
    served(
        "output",
        meaning="of a `function_call_output`: a string or parts. Images are shown in a turn of the"
        " user's behind it",
    ),
    hint("id", "status", "call_id", "phase", "namespace", "caller", "summary", "encrypted_content"),
)

PART = Section(
    "`input[].content[]`, `input[].output[]`",
    served(
        "type",
        "text",
        "refusal",
        "image_url",
        meaning="the type is `input_text`, `output_text`, `refusal` or `input_image`, whose"
        " `image_url` is the URL alone",
    ),
    served(
        "detail", "max_dynamic_patch", meaning="of an image; as those of an `image_url` in a chat"
    ),
    hint("annotations", "logprobs", "prompt_cache_breakpoint"),
    refused("file_id", way_on="send the picture in 'image_url': nothing is stored here"),
)

SECTIONS = (RESPONSES, TEXT, FORMAT, TOOL, ITEM, PART, STREAM_OPTIONS)

TEXT_TYPE = "send it as a part of the type 'input_text'"
IMAGE_TYPE = "send it as a part of the type 'input_image', whose 'image_url' is the URL alone"
ONE_PICTURE_A_FRAME = (
    "send one picture a frame: a text 'Frame1: <image>', 'Frame2: <image>' and so on, and parts"
    " of the type 'input_image' with the detail 'low'"
)
FUNCTION_ITEMS = "send 'function_call' and 'function_call_output'"
# Types of items, parts and tools that are known and not read, and the way on.
REFUSED_ITEMS: Mapping[str, str] = {
    "item_reference": "send the item itself: nothing is stored here",
    "compaction": "send the items that it stands for: nobody else can read it",
    "custom_tool_call": FUNCTION_ITEMS,
    "custom_tool_call_output": FUNCTION_ITEMS,
}
REFUSED_PARTS: Mapping[str, str] = {
    "input_file": NO_FILES,
    "file": NO_FILES,
    "input_audio": NO_SOUND,
    "input_video": ONE_PICTURE_A_FRAME,
    "video_url": ONE_PICTURE_A_FRAME,
    "text": TEXT_TYPE,
    "image_url": IMAGE_TYPE,
    "image": IMAGE_TYPE,
    "computer_screenshot": IMAGE_TYPE,
}
REFUSED_TOOLS: Mapping[str, str] = {
    "custom": "offer a tool of the type 'function' whose one parameter is a string",
    "namespace": "offer its tools one by one",
}
# Of items and tools that a server of OpenAI's runs by itself there is no end.
OTHER_ITEM = "leave it out, or put what it says into a message"
OTHER_TOOL = "leave it out, or offer a tool of the type 'function' and run it yourself"
