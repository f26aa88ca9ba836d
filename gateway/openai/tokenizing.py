"""vLLM's questions about tokens, and their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from gateway.openai.completion_fields import DETOKENIZE, TOKENIZE, TOKENIZE_CHAT
from gateway.openai.json_limits import MAX_TOKEN_VALUE_COUNT, read_json
from gateway.openai.options import ModelRequest, validated
from gateway.openai.pieces import JSONObject, token_text
from gateway.openai.refusals import shown_kind
from gateway.openai.requests import ChatCompletionRequest, chat_request
from gateway.openai.token_ids import token_ids


def _as_token_ids(value: object) -> object:
    if isinstance(value, list):
        return token_ids(value, "tokens")
    message = "the list of tokens is {shown}; it must be a list"
    raise PydanticCustomError("tokens_type", message, {"shown": shown_kind(value)})


class TokenizeRequest(ModelRequest):
    """A body of POST /tokenize: a text."""

    prompt: str
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class TokenizeChatRequest(ChatCompletionRequest):
    """A body of POST /tokenize: a chat, as it would be asked for a completion."""

    return_token_strs: bool | None = None


class DetokenizeRequest(ModelRequest):
    """The body of POST /detokenize."""

    tokens: Annotated[list[int], BeforeValidator(_as_token_ids)]


def parse_tokenize_request(
    body: bytes, strict_fields: bool = False
) -> TokenizeRequest | TokenizeChatRequest:
    """Returns the request that a body holds; raises as `parse_chat_request`."""
    document = read_json(body)
    if isinstance(document, dict) and "messages" in document:
        return chat_request(TokenizeChatRequest, document, TOKENIZE_CHAT, strict_fields)
    return validated(TokenizeRequest, document, TOKENIZE, strict_fields)


def parse_detokenize_request(body: bytes, strict_fields: bool = False) -> DetokenizeRequest:
    """Returns the request that a body holds; raises as `parse_chat_request`."""
    document = read_json(body, MAX_TOKEN_VALUE_COUNT)
    return validated(DetokenizeRequest, document, DETOKENIZE, strict_fields)


def tokenize_answer(
    ids: Sequence[int], tokens: Sequence[bytes] | None, max_context_token_count: int
) -> JSONObject:
    """Returns the answer of /tokenize; with the tokens as texts, if they are there."""
    return {
        "count": len(ids),
        "max_model_len": max_context_token_count,
        "tokens": list(ids),
        "token_strs": None if tokens is None else [token_text(token) for token in tokens],
    }
