"""A vision or LLM service as a process, which computes nothing and does as its checkpoint says.

The checkpoint's folder may hold a file of the service's name, `vision` or `llm`, with one of these
words: "refuses" cannot start, "crashes" ends with a traceback, "hangs" never serves, "stalls" ends
no answer before there is a file `release`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import grpc
import structlog
from pydantic_settings import SettingsConfigDict

from protos.internvl.v1 import llm_pb2_grpc, vision_pb2_grpc
from protos.process import logs
from protos.process.server import Service, exit_on_stop_signals, serve
from protos.process.settings import GrpcSettings, ModelNames, read_settings
from tests.fakes import ScriptedLLM, ScriptedVision

logger = structlog.get_logger()
RELEASING: set[asyncio.Task[None]] = set()


class VisionSettings(GrpcSettings):
    """Options of the scripted vision service."""

    model_config = SettingsConfigDict(env_prefix="INTERNVL_VISION_")

    checkpoint: Path
    served_model_name: str


class LLMSettings(GrpcSettings):
    """Options of the scripted LLM service."""

    model_config = SettingsConfigDict(env_prefix="INTERNVL_LLM_")

    checkpoint: Path
    served_model_name: ModelNames
    max_image_count: int = 64


def run(name: str) -> None:
    """Runs one of the two until it is told to stop."""
    exit_on_stop_signals()
    cls: type[VisionSettings | LLMSettings] = LLMSettings if name == "llm" else VisionSettings
    settings = read_settings(cls)
    logs.configure(settings.log_level, settings.log_format)
    logger.info("loading", options=settings.model_dump(mode="json"))
    behave(settings.checkpoint / name)
    service = llm(settings) if isinstance(settings, LLMSettings) else vision()
    sys.exit(0 if asyncio.run(serve(service, settings)) else 1)


def behave(script: Path) -> None:
    """Does what the script says, if there is one."""
    match script.read_text() if script.exists() else "":
        case "refuses":
            logger.error("start_failed", error="the checkpoint is of another model")
            sys.exit(1)
        case "crashes":
            raise ZeroDivisionError
        case "hangs":
            time.sleep(600)


def vision() -> Service:
    """Returns the service, not yet served."""
    return Service(
        "internvl.v1.VisionService",
        lambda server: vision_pb2_grpc.add_VisionServiceServicer_to_server(
            ScriptedVision(), server
        ),
        lambda: True,
    )


def llm(settings: LLMSettings) -> Service:
    """Returns the service, not yet served."""
    stalls = (settings.checkpoint / "llm").exists()
    servicer = ScriptedLLM(model=settings.served_model_name[0], stalls=stalls)

    def register(server: grpc.aio.Server) -> None:
        llm_pb2_grpc.add_LLMServiceServicer_to_server(servicer, server)
        RELEASING.add(asyncio.create_task(release(servicer, settings.checkpoint / "release")))

    return Service("internvl.v1.LLMService", register, lambda: True)


async def release(servicer: ScriptedLLM, file: Path) -> None:
    """Lets answers end once there is a file."""
    while not file.exists():  # noqa: ASYNC110, ASYNC240 - another process writes it
        await asyncio.sleep(0.05)
    servicer.released.set()
