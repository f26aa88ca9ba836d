"""The gateway as an aiohttp application, and how it runs."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from functools import cache, partial

from aiohttp import web

from gateway import handlers, middlewares, traces
from gateway.access.accounts import Accounts
from gateway.access.gateways import shared_out
from gateway.access.reloading import open_key_ring
from gateway.access.usage_log import UsageLog
from gateway.app_keys import (
    ACCOUNTS,
    CONNECTIONS,
    DIALECT_BY_PATH,
    KEY_RING,
    MEMORY,
    METRICS,
    ORIGINS,
    PAIR,
    PIPELINE,
    POOLS,
    REPLICAS,
    SETTINGS,
    TOKENS,
    TRAFFIC,
    USAGE_LOG,
)
from gateway.bodies import expect_nothing
from gateway.chat import ChatPipeline
from gateway.connections import Connection, Connections
from gateway.counting import TokenCounter
from gateway.dialects.base import Dialect
from gateway.dialects.chat import CHAT_COMPLETIONS
from gateway.dialects.completions import COMPLETIONS
from gateway.dialects.messages import MESSAGES, MESSAGES_COUNT
from gateway.dialects.responses import RESPONSES
from gateway.images.downloads import open_downloads
from gateway.images.fetcher import ImageFetcher, ImageLimits
from gateway.listening import listen
from gateway.memory import Memory
from gateway.metrics import LoadCollector, Metrics
from gateway.openapi.handlers import document_route
from gateway.openapi.paths import GETS, POSTS
from gateway.origins import AllowedOrigins
from gateway.page.files import page_files
from gateway.page.handlers import page_routes
from gateway.pools import open_pools
from gateway.request_images import RequestImages, RequestLimits
from gateway.services.channel import LLM_SERVICE, VISION_SERVICE, open_channel
from gateway.services.llm import LLMClient
from gateway.services.pair import ServicePair
from gateway.services.replicas import Replicas, open_replica_count
from gateway.services.routing import Router
from gateway.services.vision import VisionClient
from gateway.settings import Settings
from gateway.status import status
from gateway.tiles import tiles
from gateway.tls import encrypting
from gateway.tokens import detokenize, tokenize
from gateway.traffic import Traffic

# aiohttp would log malformed requests with their bytes, at error level; what fails in a handler is
# logged by our middleware.
QUIET = logging.getLogger("gateway.http")
QUIET.setLevel(logging.CRITICAL + 1)
DIALECTS = (CHAT_COMPLETIONS, COMPLETIONS, RESPONSES, MESSAGES)
OPERATIONS = (
    {("post", each.path): each.operation for each in (*DIALECTS, MESSAGES_COUNT)}
    | {("post", path): operation for path, operation in POSTS.items()}
    | {("get", path): operation for path, operation in GETS.items()}
)
# Requests have had `drain_seconds` before; this is for the last bytes of their answers.
SHUTDOWN_SECONDS = 1.0


def create_app(settings: Settings, metrics: Metrics) -> web.Application:
    """Returns the whole application; it opens its channels when it starts."""
    app = web.Application(
        middlewares=[
            middlewares.attend,
            middlewares.identify,
            middlewares.account,
            middlewares.answer_errors,
            middlewares.answer_preflight,
            middlewares.refuse_foreign_pages,
            middlewares.authenticate,
            traces.trace,
            middlewares.answer_errors,  # once more, so that the span has the status
            middlewares.keep_spare,
        ],
    )
    app[SETTINGS] = settings
    app[TRAFFIC] = Traffic(settings.max_request_count)
    app[ACCOUNTS] = Accounts()
    app[MEMORY] = Memory(settings.max_held_byte_count)
    app[CONNECTIONS] = Connections(settings.connection_limits)
    app[ORIGINS] = AllowedOrigins(settings.allowed_origins)
    app[DIALECT_BY_PATH] = {each.path: each for each in (*DIALECTS, MESSAGES_COUNT)}
    app[METRICS] = metrics
    metrics.registry.register(LoadCollector(app[TRAFFIC], app[CONNECTIONS], app[MEMORY]))
    # The first to begin is the last to end.
    app.cleanup_ctx.extend([_usage_log, _pools, _key_ring, _services, _gateways])
    app.on_response_prepare.append(middlewares.sign)
    app.add_routes(_routes(asks_for_keys=settings.key_source is not None))
    if settings.page:
        app.add_routes(page_routes())
    return app


def _routes(*, asks_for_keys: bool) -> list[web.RouteDef]:
    return [
        *(_post(dialect, handlers.generate) for dialect in DIALECTS),
        _post(MESSAGES_COUNT, handlers.count_input),
        web.get("/v1/responses/{id:.+}", handlers.refuse_stored),
        web.delete("/v1/responses/{id:.+}", handlers.refuse_stored),
        web.get("/v1/models", handlers.list_models),
        web.get("/v1/models/{id:.+}", handlers.get_model),
        web.get("/v1/tiles", tiles),
        web.get("/v1/status", status),
        web.post("/tokenize", tokenize, expect_handler=expect_nothing),
        web.post("/detokenize", detokenize, expect_handler=expect_nothing),
        web.get("/tokenizer_info", handlers.tokenizer_info),
        web.get("/version", handlers.version),
        web.get("/load", handlers.load),
        web.get("/health", handlers.ready),
        web.get("/health/live", handlers.live),
        web.get("/health/ready", handlers.ready),
        web.get("/ping", handlers.ready),
        _document_route(asks_for_keys=asks_for_keys),
    ]


def _post(
    dialect: Dialect, handler: Callable[[Dialect, web.Request], Awaitable[web.StreamResponse]]
) -> web.RouteDef:
    return web.post(dialect.path, partial(handler, dialect), expect_handler=expect_nothing)


@cache  # the same for every gateway of a process, and a tenth of a second's work
def _document_route(*, asks_for_keys: bool) -> web.RouteDef:
    return document_route(OPERATIONS, asks_for_keys=asks_for_keys)


async def _usage_log(app: web.Application) -> AsyncIterator[None]:
    path = app[SETTINGS].usage_log
    if path is None:
        app[USAGE_LOG] = None
        yield
        return
    app[USAGE_LOG] = log = UsageLog(path, app[METRICS].usage_log_failures.inc)
    async with log.open():
        yield


async def _pools(app: web.Application) -> AsyncIterator[None]:
    with open_pools() as pools:
        app[POOLS] = pools
        if app[SETTINGS].page:
            await pools.files.run(page_files)  # so that no request waits for the disk
        yield


async def _key_ring(app: web.Application) -> AsyncIterator[None]:
    source = app[SETTINGS].key_source
    if source is None:
        app[KEY_RING] = None
        yield
        return
    note_refused = app[METRICS].callers.note_file
    async with open_key_ring(source, app[POOLS].files, note_refused) as app[KEY_RING]:
        yield


async def _services(app: web.Application) -> AsyncIterator[None]:
    settings = app[SETTINGS]
    limits = ImageLimits(
        settings.max_image_byte_count, settings.image_fetch_seconds, settings.file_root
    )
    count_attempt = app[METRICS].count_attempt
    async with (
        open_channel(settings.vision_address, VISION_SERVICE, settings.service_tls) as vision,
        open_channel(settings.llm_address, LLM_SERVICE, settings.service_tls) as llm,
        open_downloads(settings.download_options) as downloads,
        open_replica_count(settings.vision_address) as vision_count,
        open_replica_count(settings.llm_address) as llm_count,
    ):
        app[REPLICAS] = Replicas(vision_count, llm_count)
        app[PAIR] = ServicePair(
            VisionClient(vision, Router(settings.queue_limits, partial(count_attempt, "vision"))),
            LLMClient(llm, Router(settings.queue_limits, partial(count_attempt, "llm"))),
            allows_mismatch=settings.allow_mismatched_checkpoints,
        )
        images = RequestImages(
            ImageFetcher(downloads, app[POOLS], limits),
            app[PAIR],
            app[POOLS],
            RequestLimits(
                settings.max_image_count,
                settings.max_total_image_byte_count,
                settings.max_image_host_count,
            ),
        )
        app[PIPELINE] = ChatPipeline(images, app[PAIR])
        app[TOKENS] = TokenCounter(images, app[PAIR])
        yield


async def _gateways(app: web.Application) -> AsyncIterator[None]:
    async with shared_out(app[ACCOUNTS], app[SETTINGS].gateway_count):
        yield


@asynccontextmanager
async def running_gateway(settings: Settings, metrics: Metrics | None = None) -> AsyncIterator[int]:
    """Serves the application, and yields the port that was bound.

    On leaving, chat requests in flight get `drain_seconds` to end, and are told so if that is too
    short; meanwhile /health/ready says no and new ones are refused with 503.

    Args:
        settings: the options of the process.
        metrics: where requests are counted, if anybody reads it.

    Raises:
        OSError: the address cannot be bound.
        TLSFileError: a file of TLS cannot be used.
    """
    app = create_app(settings, metrics or Metrics())
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=SHUTDOWN_SECONDS)
    try:
        await runner.setup()
        assert runner.server
        serve = partial(
            Connection,
            runner.server,
            app[CONNECTIONS],
            access_log=None,
            logger=QUIET,
            auto_decompress=False,  # compressed bodies are refused
        )
        with ExitStack() as exits:
            listeners = await listen(settings.host, settings.port)
            for listener in listeners:
                exits.enter_context(listener)
            async with (
                encrypting(settings.tls, serve) as connect,
                app[CONNECTIONS].served(listeners, connect),
            ):
                yield listeners[0].getsockname()[1]
                await app[TRAFFIC].drain(settings.drain_seconds)
    finally:
        await runner.cleanup()
