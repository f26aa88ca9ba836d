"""Calls of tools over real gRPC: with a scripted engine behind it, and with real ones."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from llm_service.engines.base import Request, TokenOutput
from llm_service.sampling import Guide, ToolCallGuide
from llm_service.settings import Settings
from protos.errors import InvalidArgumentError
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc
from protos.process.server import channel_options
from tests.idle_engine import IdleEngine
from tests.integration.llm_calls import END, exchange, serving, start
from tests.integration.real_services import running_llm
from tests.random_checkpoint import write_random_checkpoint
from tests.real_tokenizers import real_tokenizer
from tests.tool_schemas import arguments_schema
