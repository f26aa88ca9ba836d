"""POST /tokenize and /detokenize: the tokens of a prompt, and the text of tokens."""

from __future__ import annotations

from aiohttp import web

from gateway.access.permissions import check_model
from gateway.admission import admit_prompt
from gateway.app_keys import CALLER, PAIR, POOLS, RECORD, SETTINGS, TOKENS
from gateway.arrivals import arrived
from gateway.dialects.chat import IMAGE_PLACES, ChatCall
from gateway.generation import GenerationRequest
from gateway.openai.tokenizing import (
    TokenizeChatRequest,
    TokenizeRequest,
    parse_detokenize_request,
    parse_tokenize_request,
    tokenize_answer,
)

# JSON paths by the paths of the services' fields.
PARAMS = {"text": "prompt", "omit_beginning_token": "add_special_tokens"}


async def tokenize(request: web.Request) -> web.Response:
    """POST /tokenize: of a text, or of a chat, whose pictures are not encoded for it."""
    app = request.app
    async with arrived(request, IMAGE_PLACES) as (body, deadline):
        strict = app[SETTINGS].strict_fields
        asked = await app[POOLS].json.run(parse_tokenize_request, body.text, strict)
        request[RECORD].ignored_fields = asked.ignored_fields
        prompt = _prompt(asked)
        admit_prompt(request, prompt)
        count = await app[TOKENS].count(
            prompt,
            body.attachments,
            deadline,
            request[RECORD],
            return_tokens=True,
            omit_beginning_token=_is_without_beginning(asked),
        )
        info = await app[PAIR].llm_info(asked.model, deadline)
        tokens = count.tokens if asked.return_token_strs else None
        answer = tokenize_answer(count.token_ids, tokens, info.max_context_token_count)
        return web.json_response(answer)


def _prompt(asked: TokenizeRequest | TokenizeChatRequest) -> GenerationRequest:
    if isinstance(asked, TokenizeChatRequest):
        return ChatCall(asked).generations[0]
    return GenerationRequest(asked.model, {"text": asked.prompt}, _place_in_text)


def _place_in_text(field: str) -> str:
    return PARAMS.get(field, "")


def _is_without_beginning(asked: TokenizeRequest | TokenizeChatRequest) -> bool:
    return isinstance(asked, TokenizeRequest) and asked.add_special_tokens is False


async def detokenize(request: web.Request) -> web.Response:
    """POST /detokenize."""
    app = request.app
    async with arrived(request) as (body, deadline):
        strict = app[SETTINGS].strict_fields
        asked = await app[POOLS].json.run(parse_detokenize_request, body.text, strict)
        request[RECORD].ignored_fields = asked.ignored_fields
        check_model(request[CALLER], asked.model)
        await app[PAIR].llm_info(asked.model, deadline)
        text = await app[PAIR].llm.detokenize(asked.tokens, _place_in_tokens, deadline)
        return web.json_response({"prompt": text})


def _place_in_tokens(field: str) -> str:
    """Turns "token_ids.ids[1]" into "tokens[1]"."""
    return field.replace("token_ids.ids", "tokens").replace("token_ids", "tokens")
