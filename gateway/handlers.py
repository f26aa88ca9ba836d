"""The HTTP interface: chat completions, models, health."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Literal

from aiohttp import web

from gateway.chat import ChatPipeline, RequestRecord
from gateway.clients import (
    ChatEvent,
    Finished,
    LLMClient,
    TextDelta,
    TokenLogprob,
    Usage,
    VisionClient,
)
from gateway.schema import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionRequest,
    Choice,
    Model,
    ModelList,
    parse_chat_request,
)
from gateway.settings import Settings
from gateway.sse import (
    DONE,
    HEADERS,
    Transcript,
    choice_logprobs,
    completion_usage,
    error_event,
)
from gateway.traffic import Traffic
from protos.errors import NotFoundError, ServiceError

SETTINGS = web.AppKey("settings", Settings)
TRAFFIC = web.AppKey("traffic", Traffic)
PIPELINE = web.AppKey("pipeline", ChatPipeline)
VISION = web.AppKey("vision", VisionClient)
LLM = web.AppKey("llm", LLMClient)
REQUEST_ID = web.RequestKey("request_id", str)
RECORD = web.RequestKey("record", RequestRecord)

# Health and model questions are answered at once or not at all.
PROBE_SECONDS = 5.0
OVERTIME_SECONDS = 1.0


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions."""
    deadline = asyncio.get_running_loop().time() + request.app[SETTINGS].request_seconds
    with request.app[TRAFFIC].request(), _connection_until(deadline, request):
        body = await _body(request)
        chat = await asyncio.to_thread(parse_chat_request, body)
        stream = request.app[PIPELINE].stream(chat, deadline, request[RECORD])
        async with aclosing(stream) as events:
            answer = _stream if chat.stream else _collect
            return await answer(request, chat, events)


@contextmanager
def _connection_until(deadline: float, request: web.Request) -> Iterator[None]:
    """Breaks the connection off some time after the deadline.

    The services keep the deadline themselves; this is for clients that do not send or do not read,
    which would otherwise hold a place in the traffic for ever.
    """
    if request.transport is None:  # the client is gone already
        raise ConnectionResetError
    loop = asyncio.get_running_loop()
    timer = loop.call_at(deadline + OVERTIME_SECONDS, request.transport.abort)
    try:
        yield
    finally:
        timer.cancel()


async def _body(request: web.Request) -> bytes:
    seconds = request.app[SETTINGS].body_seconds
    try:
        return await asyncio.wait_for(request.read(), seconds)
    except asyncio.TimeoutError as error:
        raise web.HTTPRequestTimeout(
            text=f"the body did not arrive within {seconds:g} seconds"
        ) from error


async def _stream(
    request: web.Request, chat: ChatCompletionRequest, events: AsyncGenerator[ChatEvent, None]
) -> web.StreamResponse:
    """Sends events as they come; until the first one has come, an error is an HTTP status."""
    transcript = Transcript(
        _completion_id(request),
        int(time.time()),
        chat.model,
        chat.include_usage,
        chat.choice_count,
    )
    first = await anext(events)
    response = web.StreamResponse(headers=HEADERS)
    await response.prepare(request)
    await response.write(transcript.opening() + transcript.event(first))
    try:
        async for event in events:
            if data := transcript.event(event):
                await response.write(data)
    except ServiceError as error:
        request[RECORD].error = error.reason
        await response.write(error_event(error))
    else:
        await response.write(DONE)
    return response


async def _collect(
    request: web.Request, chat: ChatCompletionRequest, events: AsyncGenerator[ChatEvent, None]
) -> web.Response:
    """Answers at once, with all that the stream held."""
    choices: defaultdict[int, _CollectedChoice] = defaultdict(_CollectedChoice)
    usage = None
    async for event in events:
        if isinstance(event, Usage):
            usage = event
        else:
            choices[event.index].add(event)
    if usage is None or len(choices) != chat.choice_count:
        raise ServiceError("the LLM service left out a choice or the usage")
    completion_id = _completion_id(request)
    # In a thread: log probabilities may be a million objects.
    text = await asyncio.to_thread(_completion_json, completion_id, chat.model, choices, usage)
    return web.json_response(text=text)


def _completion_json(
    completion_id: str, model: str, choices: dict[int, _CollectedChoice], usage: Usage
) -> str:
    completion = ChatCompletion(
        id=completion_id,
        created=int(time.time()),
        model=model,
        choices=[choices[index].whole(index) for index in sorted(choices)],
        usage=completion_usage(usage),
    )
    return completion.model_dump_json()


class _CollectedChoice:
    """What has come of one choice."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._reason: Literal["stop", "length"] | None = None

    def add(self, event: TextDelta | Finished) -> None:
        if isinstance(event, Finished):
            self._reason = event.reason
        else:
            self._texts.append(event.text)
            self._logprobs.extend(event.logprobs)

    def whole(self, index: int) -> Choice:
        if self._reason is None:
            raise ServiceError(f"the LLM service did not finish choice {index}")
        return Choice(
            index=index,
            message=AnswerMessage(content="".join(self._texts)),
            logprobs=choice_logprobs(self._logprobs) if self._logprobs else None,
            finish_reason=self._reason,
        )


def _completion_id(request: web.Request) -> str:
    return f"chatcmpl-{request[REQUEST_ID]}"


async def list_models(request: web.Request) -> web.Response:
    """GET /v1/models."""
    models = ModelList(data=[await _model(request)])
    return web.json_response(text=models.model_dump_json())


async def get_model(request: web.Request) -> web.Response:
    """GET /v1/models/{id}."""
    model = await _model(request)
    if request.match_info["id"] != model.id:
        raise NotFoundError(f"no such model; this server has {model.id!r}")
    return web.json_response(text=model.model_dump_json())


async def _model(request: web.Request) -> Model:
    info = await request.app[LLM].ask_model_info(_probe_deadline())
    # OpenAI's `created` is the model's age; clients only sort by it.
    return Model(id=info.model, created=0, max_model_len=info.max_context_token_count)


async def live(request: web.Request) -> web.Response:
    """GET /health/live: the process answers."""
    return web.json_response({"status": "live"})


async def ready(request: web.Request) -> web.Response:
    """GET /health/ready: both services serve, and their models fit together; else 503 and why."""
    reasons = await _unready_reasons(request.app)
    if reasons:
        return web.json_response({"status": "not ready", "reasons": reasons}, status=503)
    return web.json_response({"status": "ready"})


async def _unready_reasons(app: web.Application) -> dict[str, str]:
    if app[TRAFFIC].draining:
        return {"gateway": "the gateway is stopping"}
    results = await asyncio.gather(
        _vision_hidden_size(app[VISION]), _llm_hidden_size(app[LLM]), return_exceptions=True
    )
    reasons = {}
    for name, result in zip(("vision", "llm"), results, strict=True):
        if isinstance(result, ServiceError):
            reasons[name] = result.message
        elif isinstance(result, BaseException):
            raise result
    if not reasons and results[0] != results[1]:
        reasons["model"] = (
            f"the vision service's rows have length {results[0]}, the LLM's {results[1]}:"
            " they run different checkpoints"
        )
    return reasons


async def _vision_hidden_size(vision: VisionClient) -> int:
    await vision.check_health(PROBE_SECONDS)
    return (await vision.ask_model_info(_probe_deadline())).hidden_size


async def _llm_hidden_size(llm: LLMClient) -> int:
    await llm.check_health(PROBE_SECONDS)
    return (await llm.ask_model_info(_probe_deadline())).hidden_size


def _probe_deadline() -> float:
    return asyncio.get_running_loop().time() + PROBE_SECONDS
