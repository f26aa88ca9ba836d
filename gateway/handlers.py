"""The HTTP interface: generations in every dialect, models, tokenizer, version, load, health."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from aiohttp import web

from gateway.access.permissions import check_model, may_use_model
from gateway.admission import admit_prompt, admitted
from gateway.app_keys import (
    CALLER,
    PAIR,
    PIPELINE,
    POOLS,
    RECORD,
    REQUEST_ID,
    SETTINGS,
    TOKENS,
    TRAFFIC,
)
from gateway.arrivals import arrived
from gateway.batches import answering_all
from gateway.chat import Answering
from gateway.dialects.base import Call, Dialect
from gateway.event_stream import EventStream
from gateway.memory import Share
from gateway.openai.answers import (
    AnswerHead,
    model_list,
    model_object,
    system_fingerprint,
)
from gateway.openai.completion_types import TokenizerInfo
from gateway.openai.errors import HTTPRefusalError
from gateway.openai.pieces import JSONObject
from gateway.release import release
from gateway.server_timing import is_told, timing_comment, timing_header
from gateway.services.llm import ModelInfo
from gateway.services.pair import ServicePair
from gateway.traces import generating
from protos.errors import ServiceError

# Health and model questions are answered at once or not at all.
PROBE_SECONDS = 5.0


async def generate(dialect: Dialect, request: web.Request) -> web.StreamResponse:
    """POST of a request in one of the dialects."""
    app = request.app
    async with arrived(request, dialect.image_places) as (body, deadline):
        call = await _parsed(dialect, request, body.text)
        ask = partial(
            app[PIPELINE].answering,
            attachments=body.attachments,
            deadline=deadline,
            record=request[RECORD],
        )
        share = body.attachments.share
        del body  # its text would be held until the answer's end
        generations = call.generations
        answer = _stream if call.stream else _collect
        with generating(request, dialect, generations, stream=call.stream):
            async with admitted(request, generations, deadline):
                answering = answering_all(ask, generations)
                return await answer(request, call, generations[0].model, answering, share)


async def count_input(dialect: Dialect, request: web.Request) -> web.Response:
    """POST of a request whose prompt's tokens are counted, as Anthropic tells it."""
    async with arrived(request, dialect.image_places) as (body, deadline):
        call = await _parsed(dialect, request, body.text)
        (prompt,) = call.generations
        admit_prompt(request, prompt)
        counter = request.app[TOKENS]
        count = await counter.count(prompt, body.attachments, deadline, request[RECORD])
    return web.json_response({"input_tokens": count.prompt_token_count})


async def _parsed(dialect: Dialect, request: web.Request, body: bytes) -> Call:
    strict = request.app[SETTINGS].strict_fields
    call = await request.app[POOLS].json.run_if_large(len(body), dialect.parse, body, strict)
    request[RECORD].ignored_fields = call.ignored_fields
    return call


async def _stream(
    request: web.Request,
    call: Call,
    model: str,
    answering: Answering,
    share: Share,
) -> web.StreamResponse:
    """Sends events as they come; until something has been sent, an error is an HTTP status."""
    stream = EventStream(request, request.app[SETTINGS].sse_keep_alive_seconds)
    answer = call.streamed(_head(request, model))
    try:
        with request.app[TRAFFIC].cut_short():
            async with stream.kept_alive(), answering as (info, events):
                answer = call.streamed(_head(request, model, info))
                async for event in events:
                    if data := answer.event(event):
                        await stream.write(data)
                    share.collect(answer.held_byte_count)
    except ServiceError as error:
        if not stream.has_begun:
            raise
        request[RECORD].error = error.reason
        await stream.write(answer.error(error))
    else:
        told = is_told(request.app[SETTINGS], request.headers)
        await stream.write((timing_comment(request[RECORD]) if told else b"") + answer.end())
    return stream.response


async def _collect(
    request: web.Request,
    call: Call,
    model: str,
    answering: Answering,
    share: Share,
) -> web.Response:
    """Answers at once, with all that the stream held."""
    async with answering as (info, events):
        answer = call.whole(_head(request, model, info))
        async for event in events:
            answer.add(event)
            share.collect(answer.held_byte_count)
    body = answer.body()
    told = is_told(request.app[SETTINGS], request.headers)
    headers = timing_header(request[RECORD]) if told else None
    return web.Response(
        body=body, headers=headers, content_type="application/json", charset="utf-8"
    )


def _head(request: web.Request, model: str, info: ModelInfo | None = None) -> AnswerHead:
    return AnswerHead(
        request_id=request[REQUEST_ID],
        created=int(time.time()),
        model=model or (info.model if info else ""),
        system_fingerprint=system_fingerprint(info.fingerprint_sha256 if info else b""),
    )


async def refuse_stored(_: web.Request) -> web.Response:
    """GET and DELETE /v1/responses/{id}: there is never one."""
    sentence = "no response is stored on this server; it is what POST /v1/responses has answered"
    raise HTTPRefusalError(web.HTTPNotFound(), sentence)


async def list_models(request: web.Request) -> web.Response:
    """GET /v1/models: each name of the model that the caller may use."""
    info = await request.app[PAIR].llm.ask_model_info(_probe_deadline())
    names = [name for name in info.names if may_use_model(request[CALLER], name)]
    return web.json_response(model_list(*(_model_object(name, info) for name in names)))


async def get_model(request: web.Request) -> web.Response:
    """GET /v1/models/{id}."""
    name = request.match_info["id"]
    check_model(request[CALLER], name)
    info = await request.app[PAIR].llm.ask_model_info(_probe_deadline())
    info.check_serves(name)
    return web.json_response(_model_object(name, info))


def _model_object(name: str, info: ModelInfo) -> JSONObject:
    return model_object(name, info.created_unix_seconds, info.max_context_token_count)


async def tokenizer_info(request: web.Request) -> web.Response:
    """GET /tokenizer_info: what the tokenizer calls its tokens, as vLLM tells it."""
    info = await request.app[PAIR].llm.ask_model_info(_probe_deadline())
    answer: TokenizerInfo = {
        "bos_token": info.bos_token or None,
        "eos_token": info.eos_token or None,
        "model_max_length": info.max_context_token_count,
    }
    return web.json_response(answer)


async def version(request: web.Request) -> web.Response:
    """GET /version: of this project, as vLLM tells its own."""
    return web.json_response({"version": release().version})


async def load(request: web.Request) -> web.Response:
    """GET /load: how many requests are in flight, as vLLM tells it."""
    return web.json_response({"server_load": request.app[TRAFFIC].request_count})


async def live(request: web.Request) -> web.Response:
    """GET /health/live: the process answers."""
    return web.json_response({"status": "live"})


async def ready(request: web.Request) -> web.Response:
    """GET /health/ready: a replica of each service serves, and they fit; else 503 and why.

    Also GET /health and GET /ping: vLLM's clients wait for these until they may send requests.
    """
    reasons = await _unready_reasons(request.app)
    if reasons:
        return web.json_response({"status": "not ready", "reasons": reasons}, status=503)
    return web.json_response({"status": "ready"})


async def _unready_reasons(app: web.Application) -> dict[str, str]:
    if app[TRAFFIC].draining:
        return {"gateway": "the gateway is stopping"}
    vision, llm = await asyncio.gather(
        app[PAIR].vision.check_health(PROBE_SECONDS),
        app[PAIR].llm.check_health(PROBE_SECONDS),
        return_exceptions=True,
    )
    reasons = {}
    for name, result in (("vision", vision), ("llm", llm)):
        if isinstance(result, ServiceError):
            reasons[name] = result.message
        elif isinstance(result, BaseException):
            raise result
    return reasons or await _mismatch(app[PAIR])


async def _mismatch(pair: ServicePair) -> dict[str, str]:
    """Returns why no replica of one service fits one of the other; nothing if one does."""
    try:
        await pair.check(_probe_deadline())
    except ServiceError as error:
        return {"model": error.message}
    return {}


def _probe_deadline() -> float:
    return asyncio.get_running_loop().time() + PROBE_SECONDS
