"""Where the time went and the pictures came from, by both real services behind a gateway."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import pytest_asyncio
import structlog
from structlog.testing import capture_logs

from gateway.app import running_gateway
from gateway.services.routing import QueueLimits, Router
from gateway.services.vision import VisionClient
from gateway.settings import Settings as GatewaySettings
from llm_service.settings import Settings as LLMSettings
from llm_service.settings import TorchOptions as LLMTorchOptions
from protos.errors import InvalidArgumentError, ModelMismatchError
from protos.process.settings import MIB
from tests.fakes import chat_body
from tests.integration.real_services import running_llm, running_vision
from tests.random_checkpoint import TEXT_WIDTH, write_random_checkpoint
from tests.request_lines import request_line
from tests.server_timings import Told, told, told_by_stream
from tests.spans import Spans, keeping_spans
from tests.unit.vision_service.fakes import encoded, picture
from vision_service.settings import Settings as VisionSettings
from vision_service.settings import TorchOptions as VisionTorchOptions

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENCODE_STAGES = ["preprocess", "queue", "forward"]
LLM_STAGES = ["prefill", "llm_queue", "llm_prefill", "first_token", "decode", "total"]
ALL_STAGES = ["body", "fetch", "encode_wait", *ENCODE_STAGES, "transfer", *LLM_STAGES]
HELD_STAGES = ["body", "fetch", *LLM_STAGES]
ENCODING = {
    "worker wait": "worker_wait_seconds",
    "preprocess": "preprocess_seconds",
    "queue": "queue_seconds",
    "vit": "forward_seconds",
    "transfer": "transfer_seconds",
}
GENERATING = {
    "prompt": "prompt_seconds",
    "images": "images_seconds",
    "queue": "queue_seconds",
    "prefill": "prefill_seconds",
    "decode": "decode_seconds",
}
CHAT, GENERATE = "/v1/chat/completions", "Generate"
CAT, FOX, BIRD = (encoded(picture(90, 45, seed)) for seed in (0, 1, 3))
DOG = encoded(picture(30, 30, seed=2))
# Of three tiles: the LLM service has room for one such picture that is not in use.
TABLE_BYTE_COUNT = 3 * 256 * TEXT_WIDTH * 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("timing") / "random"
    write_random_checkpoint(folder)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vision(checkpoint: Path) -> AsyncIterator[str]:
    settings = VisionSettings(
        checkpoint=checkpoint,
        preprocess_worker_count=1,
        torch=VisionTorchOptions(device="cpu", dtype="float32", thread_count=1),
    )
    async with running_vision(settings) as address:
        yield address


class Client:
    """A client of a gateway that asks where the time went."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http

    async def ask(self, *images: bytes, is_stream: bool = False, salt: str = "") -> Told:
        urls = ["data:image/png;base64," + base64.b64encode(image).decode() for image in images]
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": url}} for url in urls
        ]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": "What?"}]}]
        options = {"model": "", "stream": is_stream, "max_tokens": 3, "ignore_eos": True}
        options |= {"cache_salt": salt} if salt else {}
        async with self._http.post(
            "/v1/chat/completions",
            json=chat_body(messages=messages) | options,
            headers={"x-internvl-server-timing": "1"},
        ) as response:
            body = await response.read()
            assert response.status == 200, body
            return told_by_stream(body) if is_stream else told(response.headers["Server-Timing"])


@asynccontextmanager
async def asking(vision: str, checkpoint: Path) -> AsyncIterator[Client]:
    """Asks a gateway before the vision service and an LLM service."""
    llm_settings = LLMSettings(
        checkpoint=checkpoint,
        kv_cache_byte_count=32 * MIB,
        max_table_byte_count=TABLE_BYTE_COUNT,
        torch=LLMTorchOptions(device="cpu", thread_count=1),
    )
    async with AsyncExitStack() as exits:
        llm = await exits.enter_async_context(running_llm(llm_settings))
        settings = GatewaySettings(port=0, drain_seconds=0, vision_address=vision, llm_address=llm)
        port = await exits.enter_async_context(running_gateway(settings))
        url = f"http://127.0.0.1:{port}"
        yield Client(await exits.enter_async_context(aiohttp.ClientSession(url)))


async def test_a_picture_is_encoded_then_held_then_in_visions_cache(
    vision: str, checkpoint: Path
) -> None:
    async with asking(vision, checkpoint) as client:
        new = await client.ask(CAT)
        held = await client.ask(CAT, is_stream=True)
        three = await client.ask(DOG, CAT, DOG)
        text = await client.ask()
        await client.ask(FOX)
        # Nor has it a KV cache for those who do not know the salt.
        lost = await client.ask(CAT, is_stream=True, salt="unknown")
    assert new.images == ["encoded 2x1+1 90x45"]
    assert list(new.stages) == ALL_STAGES
    check_sums(new)
    assert (held.images, list(held.stages)) == (["llm"], HELD_STAGES)
    dog = "encoded 1x1 30x30"
    assert (three.images, list(three.stages)) == ([dog, "llm", dog], ALL_STAGES)
    assert (text.images, list(text.stages)) == ([], [*HELD_STAGES[:1], *HELD_STAGES[2:]])
    assert lost.images == ["vision_cache 2x1+1 90x45"]
    assert list(lost.stages) == [name for name in ALL_STAGES if name not in ENCODE_STAGES]


def check_sums(timing: Told) -> None:
    """Each stage is a part of another, but for what is rounded."""
    stages = timing.stages
    assert all(stages[name] > 0 for name in ("preprocess", "forward", "prefill", "decode"))
    assert sum(stages[name] for name in ENCODE_STAGES) <= stages["encode_wait"] + 0.2
    before = ("body", "fetch", "encode_wait", "transfer", "prefill")
    assert sum(stages[name] for name in before) <= stages["first_token"] + 0.3
    assert stages["llm_queue"] + stages["llm_prefill"] <= stages["first_token"] + 0.2
    assert stages["llm_prefill"] > 0
    assert stages["first_token"] + stages["decode"] <= stages["total"] + 0.2


async def test_the_services_own_clocks_say_the_same_in_logs_and_traces(
    vision: str, checkpoint: Path
) -> None:
    merged = [structlog.contextvars.merge_contextvars]
    async with asking(vision, checkpoint) as client:
        with keeping_spans() as spans, capture_logs(processors=merged) as events:
            timing = await client.ask(BIRD)
            lines = [await request_line(events, route) for route in (CHAT, "EncodeImage", GENERATE)]
    gateway, encode, generate = lines
    check_sums(timing)
    told = [f"llm_{name}" for name in ("queue", "prefill")]
    assert [timing.stages[name] for name in told] == in_ms(generate, "queue", "prefill")
    assert [timing.stages[name] for name in ENCODE_STAGES] == in_ms(encode, *ENCODE_STAGES)
    assert generate["first_token_seconds"] < gateway["first_token_seconds"]
    assert generate["images_seconds"] <= generate["prompt_seconds"]
    assert len({line["trace_id"] for line in lines}) == 1
    assert len({line["request_id"] for line in lines}) == 1
    check_children(spans, "internvl.v1.VisionService/EncodeImage", encode, "vision", ENCODING)
    check_children(spans, "internvl.v1.LLMService/Generate", generate, "llm", GENERATING)


def check_children(
    spans: Spans, name: str, line: Mapping[str, Any], service: str, stages: Mapping[str, str]
) -> None:
    """Compares a call's stages in its trace with those in its line."""
    children = spans.below(spans[name])
    assert [span.name for span in children] == [f"{service} {stage}" for stage in stages]
    for span, field in zip(children, stages.values(), strict=True):
        assert span.start_time is not None
        assert span.end_time is not None
        assert (span.end_time - span.start_time) / 1e9 == pytest.approx(line[field], abs=1e-5)


def in_ms(line: Mapping[str, Any], *stages: str) -> list[Any]:
    """Returns what Server-Timing says of a line's stages, which it rounds."""
    return [pytest.approx(1000 * line[f"{stage}_seconds"], abs=0.051) for stage in stages]


async def test_the_gateways_client_is_told_the_plan(vision: str) -> None:
    router = Router(QueueLimits(1.0, 1.0), lambda reason: None)
    deadline = asyncio.get_running_loop().time() + 30
    async with grpc.aio.insecure_channel(vision) as channel:
        client = VisionClient(channel, router)
        info = await client.ask_model_info(deadline)
        recipe = info.recipe_sha256
        plan = await client.plan_tiles(90, 60, None, recipe, deadline)
        one = await client.plan_tiles(90, 60, 1, recipe, deadline)
        refusals = {"image_width": (10**30, 5, None), "max_tile_count": (5, 5, -(10**30))}
        for field, question in refusals.items():
            with pytest.raises(InvalidArgumentError) as caught:
                await client.plan_tiles(*question, recipe, deadline)
            assert caught.value.field == field
        with pytest.raises(ModelMismatchError):
            await client.plan_tiles(90, 60, None, bytes(32), deadline)
    assert (plan.grid_column_count, plan.grid_row_count, plan.tile_count) == (3, 2, 7)
    assert plan.token_count == 7 * info.tokens_per_tile
    assert (one.tile_count, one.token_count) == (1, info.tokens_per_tile)
