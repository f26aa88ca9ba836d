"""The paths that no dialect has: models, tiles, tokens, status, health."""

from __future__ import annotations

from typing import Any

from gateway.openai.answer_types import Health, Model, ModelList, Status, Tiles
from gateway.openai.completion_fields import DETOKENIZE, TOKENIZE, TOKENIZE_CHAT
from gateway.openai.completion_types import Load, Text, TokenizerInfo, Tokens, Version
from gateway.openai.tokenizing import DetokenizeRequest, TokenizeChatRequest, TokenizeRequest
from gateway.openapi.operation import OF_BODIES, OF_QUESTIONS, Operation, Parameter

NUMBER: dict[str, Any] = {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}
READY = Operation("Whether a replica of each service serves, and they fit", Health, unready=True)
GETS: dict[str, Operation] = {
    "/v1/models": Operation("The names of the model", ModelList, errors=OF_QUESTIONS),
    "/v1/models/{id}": Operation(
        "The model of a name",
        Model,
        parameters=(Parameter("id", "path", "The name.", {"type": "string"}, "internvl-demo"),),
        errors=OF_QUESTIONS,
    ),
    "/v1/tiles": Operation(
        "How a picture would be cut, and what it would cost",
        Tiles,
        parameters=(
            Parameter("width", "query", "Of the picture, in pixels.", NUMBER, 1200, required=True),
            Parameter("height", "query", "Likewise.", NUMBER, 800, required=True),
            Parameter(
                "detail",
                "query",
                "As of a chat's picture.",
                {"enum": ["auto", "low", "high", "original"]},
                "auto",
            ),
            Parameter("max_dynamic_patch", "query", "The tile cap; before `detail`.", NUMBER, 6),
            Parameter("model", "query", "A name of the model.", {"type": "string"}, ""),
        ),
        errors={**OF_QUESTIONS, "400": "A parameter is missing, malformed or unknown."},
    ),
    "/tokenizer_info": Operation("The tokenizer's own tokens", TokenizerInfo, errors=OF_QUESTIONS),
    "/version": Operation("The version of this server", Version),
    "/load": Operation("How many requests are in flight", Load),
    "/v1/status": Operation("What is served, by how many, and how busy they are", Status),
    "/health": READY,
    "/health/live": Operation("Whether the process answers", Health),
    "/health/ready": READY,
    "/ping": READY,
}
POSTS: dict[str, Operation] = {
    "/tokenize": Operation(
        "The tokens of a text or a chat",
        Tokens,
        request=TokenizeRequest | TokenizeChatRequest,
        examples={
            "text": {"prompt": "What is a panda?", "return_token_strs": True},
            "chat": {"messages": [{"role": "user", "content": "What is a panda?"}]},
        },
        errors=OF_BODIES,
        sections={TokenizeRequest: TOKENIZE, TokenizeChatRequest: TOKENIZE_CHAT},
        description="Pictures are counted, and not encoded.",
    ),
    "/detokenize": Operation(
        "The text of tokens",
        Text,
        request=DetokenizeRequest,
        examples={"tokens": {"tokens": [1, 2, 3]}},
        errors=OF_BODIES,
        sections={DetokenizeRequest: DETOKENIZE},
    ),
}
