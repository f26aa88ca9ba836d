"""Every field that clients of Anthropic's API are known to send, and what becomes of it here.

docs/clients.md prints it.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.openai.known_fields import Section, hint, refused, served

REQUEST = Section(
    "`/v1/messages`",
    served("model", meaning="a name that `GET /v1/models` lists; empty or missing: the one served"),
    served(
        "messages",
        meaning="roles `user`, `assistant` and `system`. Neighbours of one role are one turn; a"
        " last message of the assistant goes on",
    ),
    served("system", meaning="a string, or blocks of the type `text`"),
    served(
        "max_tokens",
        meaning="required but for `count_tokens`; more than the context has room for are as many as"
        " it has",
    ),
    served("stop_sequences", meaning="up to 16; the answer's `stop_sequence` is the one met"),
    served(
        "temperature",
        "top_p",
        "top_k",
        meaning="as Anthropic's, but **the default temperature is 0**, and up to 2 is allowed;"
        " `top_k` 0: all tokens",
    ),
    served("stream", meaning="as Anthropic's"),
    served("tools", "tool_choice", meaning="tools that the client runs; see below"),
    served(
        "output_config",
        meaning="`format` is a JSON Schema that the answer fits; its objects are closed",
    ),
    served("output_format", meaning="the older place of `output_config.format`"),
    served(
        "seed",
        "min_p",
        "repetition_penalty",
        "skip_special_tokens",
        "cache_salt",
        "priority",
        meaning="as in a chat; with the SDK through `extra_body`",
    ),
    hint("metadata", "service_tier", "speed", "inference_geo", "thinking", "cache_control"),
    hint("context_management", "compaction", "diagnostics", "betas", "anthropic_beta"),
    hint("anthropic_version", "user_profile_id", "workspace_id", "billing_policy"),
    hint("fallbacks", "fallback_credit_token", "user", "chat_template_kwargs"),
    refused("container", way_on="leave it out: no code is run here"),
    refused("mcp_servers", way_on="describe their tools in 'tools', and run these yourself"),
    refused("thread", way_on="send the whole conversation in 'messages' each time"),
    refused("prompt", harmless=("",), way_on="use 'messages'"),
    refused(
        "max_completion_tokens",
        "max_output_tokens",
        "max_tokens_to_sample",
        way_on="use 'max_tokens'",
    ),
    refused("stop", way_on="use 'stop_sequences'"),
    refused("n", harmless=(1,), way_on="leave it out: there is one answer"),
    refused("response_format", way_on="use 'output_config' with a 'format'"),
)

OUTPUT_CONFIG = Section(
    "`output_config`",
    served("format", meaning="the JSON Schema"),
    hint("effort", "task_budget"),
)

OUTPUT_FORMAT = Section(
    "`output_config.format`, `output_format`",
    served("type", "schema", meaning="the type is `json_schema`"),
    hint("name"),
)

TOOL = Section(
    "`tools[]` of `/v1/messages`",
    served("type", meaning="`custom`, or missing"),
    served("name", meaning="1 to 128 characters, each once"),
    served("description", meaning="what it does, for the model"),
    served("input_schema", meaning="a JSON Schema of the input"),
    served(
        "strict",
        meaning="`true` closes the schema's objects, and a schema that cannot be enforced whole is"
        " refused; otherwise what cannot be enforced is left out",
    ),
    hint("cache_control", "defer_loading", "allowed_callers", "input_examples"),
    hint("eager_input_streaming"),
)

TOOL_CHOICE = Section(
    "`tool_choice` of `/v1/messages`",
    served(
        "type",
        "name",
        meaning="`auto`, `any`, `tool` with a name (exactly one call), or `none`: the model does"
        " not learn of the tools",
    ),
    served("disable_parallel_tool_use", meaning="one call at most"),
)

MESSAGE = Section(
    "`messages[]` of `/v1/messages`",
    served("role", meaning="`user`, `assistant` or `system`"),
    served("content", meaning="a string, or blocks"),
    hint("output_config", "clear_at", "id", "stop_reason", "stop_sequence", "usage"),
)

BLOCK = Section(
    "`messages[].content[]` of `/v1/messages`",
    served(
        "type",
        meaning="a user's: `text`, `image`, `tool_result`; the assistant's: `text`, `tool_use`;"
        " its `thinking` and `redacted_thinking` are passed over; a system's: `text`",
    ),
    served("text", meaning="where it has images around it, each `<image>` in it is one's place"),
    served("source", meaning="of an `image`; see below"),
    served(
        "detail",
        "max_dynamic_patch",
        meaning="of an `image`: as in the `image_url` of a chat; not Anthropic's",
    ),
    served("name", "input", meaning="of a `tool_use`"),
    served(
        "content",
        meaning="of a `tool_result`: a string, or blocks of the types `text` and `image`. Its"
        " images are shown in the user's turn that follows",
    ),
    served("is_error", meaning="of a `tool_result`: `true` is told to the model"),
    hint("id", "tool_use_id", "toolset_name", "caller", "cache_control", "citations"),
    hint("transformations", "thinking", "signature", "data"),
)

SOURCE = Section(
    "`source` of an image",
    served(
        "type",
        "url",
        meaning="`url`: `http(s)://`, `data:` or `file://`; see"
        " [where pictures come from](#where-pictures-come-from)",
    ),
    served("media_type", "data", meaning="`base64`: the file; its own bytes say what it is"),
    refused("file_id", way_on="send the picture itself: nothing is stored here"),
)

# Objects beneath the request whose fields are looked at as its own are.
OBJECTS: Mapping[str, Section] = {
    "output_config": OUTPUT_CONFIG,
    "output_format": OUTPUT_FORMAT,
    "tool_choice": TOOL_CHOICE,
}
SECTIONS = (
    REQUEST,
    MESSAGE,
    BLOCK,
    SOURCE,
    TOOL,
    TOOL_CHOICE,
    OUTPUT_CONFIG,
    OUTPUT_FORMAT,
)

NOT_STORED = "send the picture itself as 'base64' or 'url': nothing is stored here"
OWN_TOOLS = "describe a tool of the type 'custom' that does it, and run that yourself"
READ_BLOCKS = frozenset(
    {"text", "image", "tool_use", "tool_result", "thinking", "redacted_thinking"}
)
# Types of blocks that are known and not read, and the way on.
REFUSED_BLOCKS: Mapping[str, str] = {
    "document": "send its text, or one picture a page",
    "search_result": "send it as a block of the type 'text'",
    "container_upload": "send its text, or pictures of it",
    "image_url": "send it as a block of the type 'image'",
    "input_image": "send it as a block of the type 'image'",
    "compaction": "send the messages that it stands for",
}
# Of blocks that Anthropic's own tools make there is no end.
OTHER_BLOCK = "leave it out, or put what it says into a block of the type 'text'"
