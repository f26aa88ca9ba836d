"""GET /v1/status: model, load and replicas, also while a service is away or the gateway full."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from gateway import status
from gateway.release import release
from protos.internvl.v1 import llm_pb2, vision_pb2
from tests.fakes import MODEL, ScriptedLLM, ScriptedVision, happening, stack


class BusyVision(ScriptedVision):
    async def GetLoad(
        self, request: vision_pb2.VisionServiceGetLoadRequest, context: Any
    ) -> vision_pb2.VisionServiceGetLoadResponse:
        return vision_pb2.VisionServiceGetLoadResponse(waiting_tile_count=7.5, backlog_seconds=0.25)


@dataclass
class BusyLLM(ScriptedLLM):
    hangs: bool = False

    async def GetLoad(
        self, request: llm_pb2.GetLoadRequest, context: Any
    ) -> llm_pb2.GetLoadResponse:
        if self.hangs:
            await asyncio.sleep(30)
        return llm_pb2.GetLoadResponse(
            running_sequence_count=3,
            waiting_sequence_count=2,
            free_kv_token_count=750,
            total_kv_token_count=1000,
            backlog_seconds=1.5,
        )


STATUS = {
    "object": "status",
    "model": MODEL,
    "max_context_token_count": 32768,
    "version": release().version or None,
    "gateway": {"request_count": 0, "max_request_count": 256},
    "vision": {"replica_count": 1, "waiting_tile_count": 7.5, "backlog_seconds": 0.25},
    "llm": {
        "replica_count": 1,
        "running_sequence_count": 3,
        "waiting_sequence_count": 2,
        "kv_cache_utilization": 0.25,
        "backlog_seconds": 1.5,
    },
}


async def test_the_load_is_what_the_services_tell() -> None:
    async with stack(BusyVision(), BusyLLM()) as gateway:
        assert await gateway.get("/v1/status") == (200, STATUS)
        async with gateway.http.get("/v1/status") as response:
            assert response.headers["Cache-Control"] == "no-store"


async def test_a_service_that_is_away_is_said_to_be_and_the_rest_is_told() -> None:
    async with stack(BusyVision(), BusyLLM(), closed=["llm"]) as gateway:
        code, answer = await gateway.get("/v1/status")
    assert code == 200
    assert answer["llm"] == {"error": "the LLM service is unavailable"}
    assert (answer["model"], answer["max_context_token_count"]) == (None, None)
    assert answer["vision"] == STATUS["vision"]


async def test_a_service_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "ANSWER_SECONDS", 0.5)
    async with stack(BusyVision(), BusyLLM(hangs=True)) as gateway:
        _, answer = await gateway.get("/v1/status")
    assert answer == STATUS | {"llm": {"error": "no answer within 0.5 s"}}


async def test_both_questions_are_answered_while_the_gateway_is_full() -> None:
    async with stack(llm=BusyLLM(stalls=True), max_request_count=1) as gateway:
        asking = asyncio.create_task(gateway.chat())
        await happening(gateway.llm.stalled)
        assert (await gateway.chat())[0] == 429
        code, answer = await gateway.get("/v1/status")
        assert (code, answer["gateway"]) == (200, {"request_count": 1, "max_request_count": 1})
        assert (await gateway.get("/v1/tiles?width=448&height=448"))[0] == 200
        gateway.llm.released.set()
        assert (await asking)[0] == 200
