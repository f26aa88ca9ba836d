"""What a trace tells of a request: the spans of its way in, and GenAI's names for what it asked.

Never what is in it: no text, no URL, no path, and no stop strings, which are text too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from aiohttp import web

from gateway.app_keys import RECORD, REQUEST_ID
from gateway.dialects.base import Dialect
from gateway.generation import GenerationRequest
from gateway.middlewares import Handler
from gateway.paths import QUIET_PATHS
from gateway.record import RequestRecord
from protos.process.logs import bind_trace_id
from protos.process.tracing import (
    Span,
    Value,
    continued,
    error_type,
    is_exporting,
    observe,
    span,
)

PROVIDER = "internvl"
# By the fields of GenerateStart that they are made from.
REQUEST_ATTRIBUTES = {
    "stop.max_token_count": "gen_ai.request.max_tokens",
    "sampling.temperature": "gen_ai.request.temperature",
    "sampling.top_p": "gen_ai.request.top_p",
    "sampling.top_k": "gen_ai.request.top_k",
    "sampling.seed": "gen_ai.request.seed",
    "sampling.frequency_penalty": "gen_ai.request.frequency_penalty",
    "sampling.presence_penalty": "gen_ai.request.presence_penalty",
}
JSON_FIELDS = ("guided.json_object", "guided.json_schema")
REQUEST_DURATION = "gen_ai.server.request.duration"
TIME_TO_FIRST_TOKEN = "gen_ai.server.time_to_first_token"  # noqa: S105 - a metric
TIME_PER_OUTPUT_TOKEN = "gen_ai.server.time_per_output_token"  # noqa: S105 - a metric
# In seconds; the conventions' advice.
HISTOGRAMS: Mapping[str, Sequence[float]] = {
    REQUEST_DURATION: (
        *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28),
        *(2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
    ),
    TIME_TO_FIRST_TOKEN: (
        *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
        *(0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    ),
    TIME_PER_OUTPUT_TOKEN: (
        *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2),
        *(0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
    ),
}


@web.middleware
async def trace(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Spans a request that may be made, below the span of who makes it.

    It stands behind `authenticate`: who has no key makes no spans, and joins nobody's trace.
    """
    resource = request.match_info.route.resource
    if not is_exporting() or resource is None or resource.canonical in QUIET_PATHS:
        return await handler(request)
    route, record = resource.canonical, request[RECORD]
    attributes: dict[str, Value] = {
        "http.request.method": request.method,
        "http.route": route,
        "url.scheme": request.scheme,
        **_server(request),
        "request_id": request[REQUEST_ID],
        "caller": record.caller or "",
    }
    name = f"{request.method} {route}"
    with (
        continued(request.headers.items()),
        span(name, "server", attributes, start=record.arrival) as served,
    ):
        bind_trace_id(served.trace_id)
        response = await handler(request)
        served.set("http.response.status_code", response.status)
        failure = record.error or (str(response.status) if response.status >= 500 else None)
        served.set("error.type", failure)
        if failure and not 400 <= response.status < 500:  # these are the client's, says HTTP's
            served.fail(failure)
        return response


def _server(request: web.Request) -> dict[str, Value]:
    """Returns where the request came in: the socket's address, not what the client calls it."""
    name = request.get_extra_info("sockname")
    return {"server.address": name[0], "server.port": name[1]} if name else {}


@contextmanager
def generating(
    request: web.Request,
    dialect: Dialect,
    generations: Sequence[GenerationRequest],
    *,
    stream: bool,
) -> Iterator[None]:
    """Spans what a request has generated, and counts it in the histograms.

    Args:
        request: whose record tells at the end what it took.
        dialect: how its answer's id begins.
        generations: what it asks for.
        stream: whether the answer is sent as it is made.
    """
    if not is_exporting():
        yield
        return
    common, server = _common(generations[0]), _server(request)  # a client may be gone at the end
    failure: str | None = None
    record = request[RECORD]
    name = f"gateway {common['gen_ai.operation.name']}"
    with span(name, attributes={**common, **_asked(generations, stream=stream)}) as chat:
        try:
            yield
            failure = record.error
        except BaseException as error:
            failure = error_type(error)
            raise
        finally:
            if record.model:  # else the name is none of ours, but a client's words
                chat.set("gen_ai.request.model", generations[0].model or None)
            chat.set("gen_ai.response.id", dialect.answer_id_prefix + request[REQUEST_ID])
            _tell(chat, record, failure, stream=stream)
            _observe(record, failure, {**common, **server})


def _common(generation: GenerationRequest) -> dict[str, Value]:
    is_chat = "chat.messages" in generation.fields
    return {
        "gen_ai.operation.name": "chat" if is_chat else "text_completion",
        "gen_ai.provider.name": PROVIDER,
    }


def _asked(generations: Sequence[GenerationRequest], *, stream: bool) -> dict[str, Value]:
    first = generations[0]
    attributes: dict[str, Value] = {
        attribute: first.fields[field]
        for field, attribute in REQUEST_ATTRIBUTES.items()
        if field in first.fields
    }
    if (choice_count := len(generations) * first.choice_count) != 1:
        attributes["gen_ai.request.choice.count"] = choice_count
    attributes["gen_ai.request.stream"] = stream
    is_json = any(field in first.fields for field in JSON_FIELDS)
    attributes["gen_ai.output.type"] = "json" if is_json else "text"
    return attributes


def _tell(chat: Span, record: RequestRecord, failure: str | None, *, stream: bool) -> None:
    """Sets what is known of the answer."""
    if failure:
        chat.fail(failure)
    chat.set("gen_ai.response.model", record.model)
    chat.set("gen_ai.response.finish_reasons", record.finish_reasons or None)
    if stream:
        first_token = record.stage_seconds.get("first_token")
        chat.set("gen_ai.response.time_to_first_chunk", first_token)
    chat.set("gen_ai.usage.input_tokens", record.prompt_token_count)
    chat.set("gen_ai.usage.output_tokens", record.output_token_count)
    chat.set("gen_ai.usage.cache_read.input_tokens", record.cached_token_count)
    chat.set("gen_ai.usage.image.input_tokens", record.image_token_count)
    if record.prompt_token_count is not None:
        text_token_count = record.prompt_token_count - (record.image_token_count or 0)
        chat.set("gen_ai.usage.text.input_tokens", text_token_count)
    if record.image_count:
        chat.set("image_count", record.image_count)
        chat.set("reused_image_count", record.reused_image_count)
        chat.set("cached_image_count", record.cached_image_count)
        chat.set("encoded_image_count", record.encoded_image_count)
        chat.set("encoded_tile_count", record.encoded_tile_count)


def _observe(record: RequestRecord, failure: str | None, attributes: dict[str, Value]) -> None:
    """Counts a request; models by the name under which they are served, or by none."""
    if record.model:
        attributes["gen_ai.request.model"] = attributes["gen_ai.response.model"] = record.model
    if failure:
        observe(REQUEST_DURATION, record.elapsed(), {**attributes, "error.type": failure})
        return
    observe(REQUEST_DURATION, record.elapsed(), attributes)
    observe(TIME_TO_FIRST_TOKEN, record.stage_seconds["first_token"], attributes)
    if (later_count := (record.output_token_count or 0) - 1) > 0:
        seconds = record.stage_seconds["decode"] / later_count
        observe(TIME_PER_OUTPUT_TOKEN, seconds, attributes)
