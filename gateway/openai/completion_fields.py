"""Fields of the requests for completions and tokens, and what becomes of them."""

from __future__ import annotations

from gateway.openai.known_fields import TOP_LEVEL, Section, refused, served

CHAT = "ask /v1/chat/completions"
OUTPUT_LIMIT = "use 'max_tokens'"
# Of a chat's rows those that mean something else here, or nothing, by one name each.
CHATS_OWN = frozenset(
    {
        *("messages", "temperature", "logprobs", "continue_final_message", "tools", "functions"),
        *("best_of", "echo", "max_new_tokens", "n_predict", "truncate_prompt_tokens"),
        *("prompt_logprobs", "return_token_ids", "prompt", "system", "images", "extra_body"),
        *("mm_processor_kwargs", "chat_template", "add_special_tokens", "do_preprocess"),
        *("session_params", "documents", "n_probs"),
    }
)

COMPLETION = Section(
    "`/v1/completions`",
    served(
        "prompt",
        meaning="a string, token ids, or up to 128 of either; one text is tokenized as a message's,"
        " with the beginning token where the model has one, and token ids are used as they are."
        " `<image>` is text. Prompt i has the choices from i * `n` on; an error names `prompt[i]`",
    ),
    served(
        "max_tokens",
        meaning="default 16; -1 sets no limit; 0 goes with `echo`, for the prompt's log"
        " probabilities alone",
    ),
    served("echo", meaning="the prompt's text stands before the answer, also that of token ids"),
    served(
        "logprobs",
        meaning="up to 20 alternatives, of OpenAI's older form; with `echo` the prompt's tokens"
        " have theirs, too, in up to 128 choices. Equal texts are one entry, with the best",
    ),
    served("best_of", meaning="1, or as many as `n`: nothing is chosen"),
    served(
        "temperature",
        "top_p",
        "seed",
        "presence_penalty",
        "frequency_penalty",
        "stop",
        meaning="as in a chat; **the default temperature is 0**",
    ),
    *(row for row in TOP_LEVEL.rows if CHATS_OWN.isdisjoint(row.names)),
    refused(
        "suffix",
        harmless=("",),
        way_on="leave it out: the model goes on from the prompt's end, and fills no gaps",
    ),
    refused("messages", "tools", "functions", "images", way_on=CHAT),
    refused("tool_choice", "function_call", harmless=("none", "auto"), way_on=CHAT),
    refused("max_completion_tokens", way_on=OUTPUT_LIMIT),
    refused(
        "max_new_tokens", "max_output_tokens", "max_length", harmless=(-1,), way_on=OUTPUT_LIMIT
    ),
    refused("n_predict", "num_predict", harmless=(-1,), way_on=OUTPUT_LIMIT),
    refused("input", "inputs", "input_ids", "prompt_token_ids", way_on="use 'prompt'"),
    refused("prompt_embeds", way_on="use 'prompt', which takes text and token ids"),
    refused("system", "instructions", harmless=("",), way_on="put it into 'prompt'"),
    refused("extra_body", "options", way_on="put its fields beside 'prompt'"),
    refused(
        "truncate_prompt_tokens",
        way_on="shorten the prompt; one that does not fit is refused, never cut",
    ),
    refused("prompt_logprobs", way_on="use 'echo' and 'logprobs'"),
    refused(
        "top_logprobs",
        "n_probs",
        harmless=(0,),
        way_on="use 'logprobs', which is the number of them",
    ),
    refused(
        "return_token_ids",
        "return_tokens_as_token_ids",
        "return_tokens",
        harmless=(False,),
        way_on="use 'logprobs', which gives the text of each token",
    ),
    refused(
        "add_special_tokens",
        harmless=(True,),
        way_on="send token ids, which are used as they are",
    ),
)

TOKENIZE = Section(
    "`/tokenize` with `prompt`",
    served("model", meaning="as in a chat"),
    served("prompt", meaning="one text; `<image>` is text"),
    served(
        "add_special_tokens",
        meaning="`false` leaves the beginning token out; a prompt that is a token's name and"
        " nothing else, e.g. `<|im_end|>`, is then that token",
    ),
    served("return_token_strs", meaning="whether the tokens come as texts, too"),
)
TOKENIZE_CHAT = Section(
    "`/tokenize` with `messages`",
    served("return_token_strs", meaning="whether the tokens come as texts, too"),
    *TOP_LEVEL.rows,
)
DETOKENIZE = Section(
    "`/detokenize`",
    served("model", meaning="as in a chat"),
    served("tokens", meaning="token ids; special tokens come by their names"),
)
