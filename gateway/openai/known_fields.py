"""Every field that clients are known to send, and what becomes of it here: the one table.

The names are those of OpenAI's chat API, vLLM, SGLang, LMDeploy, llama.cpp and Ollama.
docs/clients.md prints it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NOTHING: tuple[object, ...] = (None, {}, [])


@dataclass(frozen=True)
class Served:
    """Fields that are honoured, and what they mean here."""

    names: tuple[str, ...]
    meaning: str


@dataclass(frozen=True)
class Hint:
    """Labels and hints: without them the answer would be as right."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Refused:
    """Fields that would change the answer in a way that this server cannot.

    Attributes:
        names: the fields.
        way_on: what to do instead; names of fields and values are quoted.
        harmless: values that ask for nothing.
    """

    names: tuple[str, ...]
    way_on: str
    harmless: tuple[object, ...] = NOTHING


Row = Served | Hint | Refused


class Section:
    """The fields of one kind of object.

    Attributes:
        title: where they stand, for people.
        rows: in the order of the documentation.
    """

    def __init__(self, title: str, *rows: Row) -> None:
        self.title = title
        self.rows = rows
        self.by_name: Mapping[str, Row] = {name: row for row in rows for name in row.names}
        self.served = frozenset(
            name for row in rows if isinstance(row, Served) for name in row.names
        )
        self.refused = frozenset(
            name for row in rows if isinstance(row, Refused) for name in row.names
        )


def served(*names: str, meaning: str) -> Served:
    """Returns a row of fields that are honoured."""
    return Served(names, meaning)


def hint(*names: str) -> Hint:
    """Returns a row of fields that are accepted and ignored."""
    return Hint(names)


def refused(*names: str, way_on: str, harmless: tuple[object, ...] = ()) -> Refused:
    """Returns a row of fields that are refused; empty values and `harmless` ones pass."""
    return Refused(names, way_on, NOTHING + harmless)


TEXT_ALONE = "leave it out: the answer is text"
NO_BEAMS = "leave it out: tokens are sampled, or the most probable ones taken at temperature 0"
TOP_K_AND_P = "use 'temperature', 'top_p', 'top_k' and 'min_p'"
TOKENS_SHOWN = "use 'logprobs', which gives text and bytes of each token"
OUTPUT_LIMIT = "use 'max_completion_tokens'"
GRAMMAR = "use 'structured_outputs' with 'grammar', in the dialect of llguidance"
REGEX = "use 'structured_outputs' with 'regex'"
ONE_PLACE = "leave it out: prompt and answer are computed in one place"
FIXED_MODEL = "leave it out: the model is served as it is"

TOP_LEVEL = Section(
    "The request",
    served("model", meaning="a name that `GET /v1/models` lists; empty or missing: the one served"),
    served(
        "messages",
        meaning="roles `system` and `developer` (any number, anywhere), `user`, `assistant`,"
        " `tool` and `function`; see below",
    ),
    served(
        "temperature",
        "top_p",
        "seed",
        "presence_penalty",
        "frequency_penalty",
        "stop",
        "max_tokens",
        "max_completion_tokens",
        meaning="as OpenAI's; **the default temperature is 0**, the reference's greedy decoding."
        " `top_p` 0 takes the most probable token; a `seed` is any 64-bit number, signed or"
        " unsigned; more `max_tokens` than the context has room for are as many as it has, and -1"
        " sets no limit",
    ),
    served(
        "n",
        meaning="1 to 16 answers of one prompt, which is read once. With `seed`, choice i is the"
        " answer of `seed + i`. In a stream the choices' chunks interleave: go by `index`."
        " `usage` counts the tokens of all",
    ),
    served("stream", "stream_options", meaning="as OpenAI's; see below"),
    served("logprobs", "top_logprobs", meaning="as OpenAI's, up to 20; see below"),
    served("logit_bias", meaning="up to 1024 token ids as strings, each -100 to 100"),
    served("response_format", meaning="`text`, `json_object` or `json_schema`; see below"),
    served(
        "structured_outputs",
        meaning="as vLLM's, with one of `json` (a schema), `regex`, `choice`, `grammar`,"
        " `json_object`; see below",
    ),
    served(
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        meaning="vLLM's older names of the same",
    ),
    served(
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        meaning="as OpenAI's, of the type `function`; see [tools](#tools)",
    ),
    served(
        "functions",
        "function_call",
        meaning="the older names; the answer has its one call in `message.function_call`",
    ),
    served(
        "continue_final_message",
        "add_generation_prompt",
        meaning="as vLLM's. Without them a last message of the assistant goes on (its turn is left"
        " open), and any other is answered. `add_generation_prompt: true`, or"
        " `continue_final_message: false`, begins a new turn in any case;"
        " `add_generation_prompt: false` alone begins none",
    ),
    served(
        "priority",
        meaning="as vLLM's: of waiting requests the one with the **lowest** comes first; default 0,"
        " and anything else is refused unless the LLM service runs with `--allow-priority`",
    ),
    served(
        "cache_salt",
        meaning="as vLLM's, up to 128 characters: the prompt shares cached KV only with requests of"
        " the same salt, so that nobody can learn from an answer's speed what others have asked",
    ),
    served(
        "top_k",
        "min_p",
        "repetition_penalty",
        "stop_token_ids",
        "min_tokens",
        "ignore_eos",
        "skip_special_tokens",
        meaning="as vLLM's; with the openai client through `extra_body`. `top_k` 0 or -1: all"
        " tokens. `skip_special_tokens: false` keeps `<ref>` and `<box>` for grounding",
    ),
    hint("user", "metadata", "store", "safety_identifier", "request_id", "rid", "session_id"),
    hint("service_tier", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    hint("prediction", "cache_prompt", "cache_control", "keep_alive", "num_ctx", "n_keep"),
    hint("id_slot", "slot_id", "data_parallel_rank", "timeout", "guided_decoding_backend"),
    hint("reasoning_effort", "reasoning", "reasoning_format", "thinking", "think"),
    hint("enable_thinking", "thinking_budget", "thinking_token_budget", "include_reasoning"),
    hint("separate_reasoning", "stream_reasoning", "verbosity"),
    hint("media_io_kwargs", "spaces_between_special_tokens", "timings_per_token"),
    hint("return_progress", "return_cached_tokens_details", "repeat_last_n", "penalize_nl"),
    hint("length_penalty", "early_stopping", "mirostat_tau", "mirostat_eta", "xtc_threshold"),
    hint("dynatemp_exponent", "dry_base", "dry_allowed_length", "dry_penalty_last_n"),
    hint("dry_sequence_breakers", "chat_template_kwargs"),
    refused("audio", way_on=TEXT_ALONE),
    refused("modalities", harmless=(["text"],), way_on=TEXT_ALONE),
    refused("moderation", way_on="leave it out: nothing is moderated here"),
    # To OpenAI an empty object asks for a search.
    Refused(("web_search_options",), "leave it out: nothing is looked up here", (None,)),
    refused("best_of", harmless=(1,), way_on="use 'n', and choose among the answers"),
    refused("use_beam_search", harmless=(False,), way_on=NO_BEAMS),
    refused("num_beams", harmless=(1,), way_on=NO_BEAMS),
    refused(
        "do_sample",
        way_on="use 'temperature': 0 takes the most probable token, anything above samples",
    ),
    refused("repeat_penalty", harmless=(1,), way_on="use 'repetition_penalty'"),
    refused(
        "repetition_detection", way_on="use 'repetition_penalty' or 'frequency_penalty' against it"
    ),
    refused("typical_p", "tfs_z", harmless=(1,), way_on=TOP_K_AND_P),
    refused("top_n_sigma", harmless=(-1, 0), way_on=TOP_K_AND_P),
    refused("mirostat", "top_a", "min_keep", harmless=(0,), way_on=TOP_K_AND_P),
    refused("xtc_probability", "dynatemp_range", harmless=(0,), way_on=TOP_K_AND_P),
    refused("dry_multiplier", harmless=(0,), way_on="use 'frequency_penalty'"),
    refused("samplers", "logits_processors", "custom_logit_processor", way_on=TOP_K_AND_P),
    refused("echo", harmless=(False,), way_on="put the prompt before the answer yourself"),
    refused(
        "include_stop_str_in_output",
        "no_stop_trim",
        harmless=(False,),
        way_on="leave it out: a stop string is never part of the answer",
    ),
    refused("stop_sequences", way_on="use 'stop'"),
    refused("stop_regex", way_on="use 'stop', which takes strings"),
    refused("bad_words", way_on="use 'logit_bias' with -100"),
    refused("allowed_token_ids", way_on=REGEX),
    refused(
        "max_new_tokens", "max_output_tokens", "max_length", harmless=(-1,), way_on=OUTPUT_LIMIT
    ),
    refused("n_predict", "num_predict", harmless=(-1,), way_on=OUTPUT_LIMIT),
    refused("min_new_tokens", harmless=(0,), way_on="use 'min_tokens'"),
    refused(
        "truncate_prompt_tokens",
        way_on="shorten the messages; a prompt that does not fit is refused, never cut",
    ),
    refused("prompt_logprobs", way_on="use 'logprobs', which gives those of the answer"),
    refused("n_probs", harmless=(0,), way_on="use 'logprobs' and 'top_logprobs'"),
    refused(
        "return_token_ids",
        "return_tokens_as_token_ids",
        "return_tokens",
        harmless=(False,),
        way_on=TOKENS_SHOWN,
    ),
    refused(
        "return_hidden_states",
        "return_routed_experts",
        harmless=(False,),
        way_on="leave it out: the answer is text",
    ),
    refused("regex", way_on=REGEX),
    refused("ebnf", "grammar", harmless=("",), way_on=GRAMMAR),
    refused(
        "guided_whitespace_pattern",
        "structural_tag",
        way_on="leave it out: between the tokens of JSON stands at most one blank",
    ),
    refused("json_schema", "format", harmless=("",), way_on="use 'response_format'"),
    refused("input", "inputs", "input_ids", "prompt", harmless=("",), way_on="use 'messages'"),
    refused(
        "system",
        "instructions",
        harmless=("",),
        way_on="use a message of the role 'system'",
    ),
    refused("images", way_on="use content parts of the type 'image_url'"),
    refused("documents", way_on="put their text into a message"),
    refused("extra_body", "options", way_on="put its fields beside 'messages'"),
    refused("mm_processor_kwargs", way_on="give each image its own 'max_dynamic_patch'"),
    refused("chat_template", way_on="leave it out: the template is that of the checkpoint"),
    refused(
        "add_special_tokens",
        harmless=(False,),
        way_on="leave it out: the chat template has them",
    ),
    refused(
        "do_preprocess",
        harmless=(True,),
        way_on="leave it out: messages are always laid out by the chat template",
    ),
    refused("lora_path", "lora", "adapter_name", way_on=FIXED_MODEL),
    refused("watermark", harmless=(False,), way_on="leave it out: no answer is marked here"),
    refused("kv_transfer_params", "bootstrap_host", way_on=ONE_PLACE),
    refused("bootstrap_port", "bootstrap_room", way_on=ONE_PLACE),
    refused("session_params", way_on="send the whole conversation in 'messages' each time"),
    refused("extra_key", way_on="use 'cache_salt'"),
    refused("vllm_xargs", "custom_params", way_on="leave it out: there are no extensions here"),
)

STREAM_OPTIONS = Section(
    "`stream_options`",
    served("include_usage", meaning="as OpenAI's: a last chunk holds the usage"),
    served("continuous_usage_stats", meaning="as vLLM's: every chunk holds the usage so far"),
    refused("include_obfuscation", harmless=(False,), way_on="leave it out: nothing is padded"),
)

RESPONSE_FORMAT = Section(
    "`response_format`",
    served("type", "json_schema", meaning="`text`, `json_object`, `json_schema`; see below"),
    refused("schema", way_on="put it into 'json_schema', and set the type to 'json_schema'"),
    refused("regex_schema", "pattern", "regex", way_on=REGEX),
    refused("grammar", way_on=GRAMMAR),
)

JSON_SCHEMA = Section(
    "`response_format.json_schema`",
    served("schema", "name", "description", "strict", meaning="as OpenAI's; see below"),
)

STRUCTURED_OUTPUTS = Section(
    "`structured_outputs`",
    served("json", "regex", "choice", "grammar", "json_object", meaning="one of them; see below"),
    hint("disable_fallback", "disable_any_whitespace", "_backend", "_backend_was_auto"),
    refused(
        "disable_additional_properties",
        harmless=(False,),
        way_on="write 'additionalProperties' into the schema",
    ),
    refused(
        "whitespace_pattern",
        "structural_tag",
        way_on="leave it out: between the tokens of JSON stands at most one blank",
    ),
)

TOOL = Section(
    "`tools[]`",
    served("type", "function", meaning="the type is `function`, and may be missing"),
    hint("cache_control"),
)

FUNCTION = Section(
    "`tools[].function`, `functions[]`",
    served(
        "name",
        meaning="1 to 128 characters, also the `.`, `/` and `:` of other servers' tools; each once",
    ),
    served("description", meaning="what it does, for the model"),
    served("parameters", meaning="a JSON Schema of the arguments; missing: any object"),
    served(
        "strict",
        meaning="`true` closes the schema's objects, and a schema that cannot be enforced whole is"
        " refused; otherwise what cannot be enforced is left out",
    ),
    hint("cache_control", "defer_loading", "allowed_callers", "input_examples"),
)

TOOL_CHOICE = Section(
    "`tool_choice`",
    served(
        "type",
        "function",
        "allowed_tools",
        meaning="the type is `function`, or `allowed_tools` for some of the tools",
    ),
)

CHAT_TEMPLATE_KWARGS = Section(
    "`chat_template_kwargs`",
    hint("enable_thinking", "thinking", "thinking_budget", "reasoning_effort"),
)

MESSAGE = Section(
    "`messages[]`",
    served(
        "content",
        meaning="a string, or parts; may be null or missing in the roles `assistant`, `tool` and"
        " `function`. Only a user's and a tool's message may have images; a tool's are shown in"
        " a turn of the user's behind it. Where it has some, each `<image>` in its"
        " text is the place of the next one; images without an `<image>` of their own stand"
        " before the text, or in the order of the parts where there are several texts and no"
        " `<image>`. In a message without images `<image>` is text. More `<image>` than images is a"
        " 400 in the last user message; in older ones those beyond are text",
    ),
    served("role", meaning="as above; `function` is the older name of `tool`"),
    served(
        "tool_calls",
        "function_call",
        meaning="of the role `assistant`: its calls, which are laid out as it would make them",
    ),
    hint("name", "tool_call_id", "refusal", "annotations", "parsed", "reasoning_content"),
    hint("reasoning", "reasoning_details", "thinking", "thinking_blocks", "cache_control"),
    refused("audio", way_on="put what was said into 'content'"),
    refused("images", way_on="use content parts of the type 'image_url'"),
)

PART = Section(
    "`messages[].content[]`",
    served(
        "type",
        "text",
        "image_url",
        meaning="the type is `text` or `image_url`, which is an object or the URL alone. A plain"
        " string is a text part, as is a `refusal` of the assistant's; `thinking`,"
        " `redacted_thinking` and `reasoning` are passed over",
    ),
    hint("cache_control", "uuid", "min_pixels", "max_pixels", "modalities"),
)

IMAGE_URL = Section(
    "`image_url`",
    served(
        "url",
        meaning="`data:`, `http(s)://` or `file://`; see"
        " [where pictures come from](#where-pictures-come-from)",
    ),
    served(
        "detail",
        meaning="`low`: one tile (256 tokens, as a rule). `auto` or unset: up to the checkpoint's"
        " `max_dynamic_patch` tiles, and a thumbnail. `high` and `original`: up to the vision"
        " service's `--max-tile-count` (the same, unless it was raised)",
    ),
    served("max_dynamic_patch", meaning="the tile cap as a number; goes before `detail`"),
    hint("format"),
)

# Objects beneath the request whose fields are looked at as its own are.
OBJECTS: Mapping[str, Section] = {
    "stream_options": STREAM_OPTIONS,
    "response_format": RESPONSE_FORMAT,
    "structured_outputs": STRUCTURED_OUTPUTS,
    "tool_choice": TOOL_CHOICE,
    "chat_template_kwargs": CHAT_TEMPLATE_KWARGS,
}
SECTIONS = (
    TOP_LEVEL,
    MESSAGE,
    PART,
    IMAGE_URL,
    STREAM_OPTIONS,
    RESPONSE_FORMAT,
    JSON_SCHEMA,
    STRUCTURED_OUTPUTS,
    TOOL,
    FUNCTION,
    TOOL_CHOICE,
    CHAT_TEMPLATE_KWARGS,
)

ONE_PICTURE_A_FRAME = (
    "send one picture a frame: a text 'Frame1: <image>', 'Frame2: <image>' and so on, and parts"
    " of the type 'image_url' with the detail 'low'"
)
NO_SOUND = "send what is said in it as text"
NO_FILES = "send its text, or one picture a page"
TEXT_TYPE = "send it as a part of the type 'text'"
IMAGE_TYPE = "send it as a part of the type 'image_url'"
TOOL_MESSAGES = "send 'tool_calls' in the message of the assistant, and results by the role 'tool'"
# Types of content parts that are known and not read, and the way on.
REFUSED_PARTS: Mapping[str, str] = {
    "video_url": ONE_PICTURE_A_FRAME,
    "video": ONE_PICTURE_A_FRAME,
    "input_video": ONE_PICTURE_A_FRAME,
    "input_audio": NO_SOUND,
    "audio_url": NO_SOUND,
    "audio": NO_SOUND,
    "file": NO_FILES,
    "input_file": NO_FILES,
    "document": NO_FILES,
    "input_text": TEXT_TYPE,
    "output_text": TEXT_TYPE,
    "input_image": IMAGE_TYPE,
    "image": IMAGE_TYPE,
    "image_pil": IMAGE_TYPE,
    "image_embeds": IMAGE_TYPE,
    "tool_use": TOOL_MESSAGES,
    "tool_result": TOOL_MESSAGES,
}
