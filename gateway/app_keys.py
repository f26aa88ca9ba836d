"""What the application and each of its requests carry, by typed keys."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from gateway.access.accounts import Account, Accounts
from gateway.access.callers import Caller
from gateway.access.keyring import KeyRing
from gateway.access.usage_log import UsageLog
from gateway.chat import ChatPipeline
from gateway.connections import Connections
from gateway.counting import TokenCounter
from gateway.dialects.base import Dialect
from gateway.memory import Memory
from gateway.metrics import Metrics
from gateway.origins import AllowedOrigins
from gateway.pools import Pools
from gateway.record import RequestRecord
from gateway.services.pair import ServicePair
from gateway.services.replicas import Replicas
from gateway.settings import Settings
from gateway.traffic import Traffic

SETTINGS = web.AppKey("settings", Settings)
METRICS = web.AppKey("metrics", Metrics)
TRAFFIC = web.AppKey("traffic", Traffic)
ACCOUNTS = web.AppKey("accounts", Accounts)
MEMORY = web.AppKey("memory", Memory)
POOLS = web.AppKey("pools", Pools)
CONNECTIONS = web.AppKey("connections", Connections)
ORIGINS = web.AppKey("origins", AllowedOrigins)
PIPELINE = web.AppKey("pipeline", ChatPipeline)
TOKENS = web.AppKey("tokens", TokenCounter)
PAIR = web.AppKey("pair", ServicePair)
REPLICAS = web.AppKey("replicas", Replicas)
USAGE_LOG: web.AppKey[UsageLog | None] = web.AppKey("usage_log")
# None: no key is asked for.
KEY_RING: web.AppKey[KeyRing | None] = web.AppKey("key_ring")

DIALECT_BY_PATH: web.AppKey[Mapping[str, Dialect]] = web.AppKey("dialect_by_path")

REQUEST_ID = web.RequestKey("request_id", str)
RECORD = web.RequestKey("record", RequestRecord)
CALLER = web.RequestKey("caller", Caller)
ACCOUNT = web.RequestKey("account", Account)
