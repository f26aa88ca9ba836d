"""GET /v1/status: what is served, by how many, and how busy they are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from aiohttp import hdrs, web

from gateway.app_keys import PAIR, REPLICAS, SETTINGS, TRAFFIC
from gateway.openai.pieces import JSONObject
from gateway.release import release
from gateway.services.llm import LLMClient
from gateway.services.replicas import ReplicaCount
from gateway.services.vision import VisionClient
from protos.errors import DeadlineError, ServiceError

# A page waits for it, and asks again anyway.
ANSWER_SECONDS = 2.0


async def status(request: web.Request) -> web.Response:
    """GET /v1/status: of a service that does not answer it says so; it is 200 all the same."""
    app = request.app
    pair, replicas = app[PAIR], app[REPLICAS]
    deadline = asyncio.get_running_loop().time() + ANSWER_SECONDS
    model, vision, llm = await asyncio.gather(
        _or_error(_model(pair.llm, deadline)),
        _or_error(_vision(pair.vision, replicas.vision, deadline)),
        _or_error(_llm(pair.llm, replicas.llm, deadline)),
    )
    body = {
        "object": "status",
        "model": model.get("name"),
        "max_context_token_count": model.get("max_context_token_count"),
        "version": release().version or None,
        "gateway": {
            "request_count": app[TRAFFIC].request_count,
            "max_request_count": app[SETTINGS].max_request_count,
        },
        "vision": vision,
        "llm": llm,
    }
    return web.json_response(body, headers={hdrs.CACHE_CONTROL: "no-store"})


async def _or_error(asking: Awaitable[JSONObject]) -> JSONObject:
    try:
        return await asking
    except DeadlineError:
        return {"error": f"no answer within {ANSWER_SECONDS:g} s"}
    except ServiceError as error:
        return {"error": error.message}


async def _model(llm: LLMClient, deadline: float) -> JSONObject:
    info = await llm.ask_model_info(deadline)
    return {"name": info.model, "max_context_token_count": info.max_context_token_count}


async def _vision(client: VisionClient, replicas: ReplicaCount, deadline: float) -> JSONObject:
    load, count = await asyncio.gather(client.ask_load(deadline), replicas.now())
    return {
        **_counted(count),
        "waiting_tile_count": load.waiting_tile_count,
        "backlog_seconds": load.backlog_seconds,
    }


async def _llm(client: LLMClient, replicas: ReplicaCount, deadline: float) -> JSONObject:
    load, count = await asyncio.gather(client.ask_load(deadline), replicas.now())
    return {
        **_counted(count),
        "running_sequence_count": load.running_sequence_count,
        "waiting_sequence_count": load.waiting_sequence_count,
        "kv_cache_utilization": round(load.kv_cache_utilization, 4),
        "backlog_seconds": load.backlog_seconds,
    }


def _counted(count: int | None) -> dict[str, Any]:
    return {} if count is None else {"replica_count": count}
