"""Tokens and completions of a tiny random model, by both real services behind a gateway."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from gateway.app import running_gateway
from gateway.settings import Settings as GatewaySettings
from llm_service.settings import Settings as LLMSettings
from llm_service.settings import TorchOptions as LLMTorchOptions
from protos.process.settings import MIB
from tests.integration.real_services import running_llm, running_vision
from tests.random_checkpoint import write_random_checkpoint
from tests.unit.vision_service.fakes import encoded, picture
from vision_service.settings import Settings as VisionSettings
from vision_service.settings import TorchOptions as VisionTorchOptions

pytestmark = pytest.mark.asyncio(loop_scope="module")

WIDE, SMALL = (encoded(picture(*size)) for size in ((90, 45), (30, 30)))
TEXT = "Pandas live ✓ in"


@dataclass(frozen=True)
class Client:
    """A client of the gateway."""

    http: aiohttp.ClientSession

    async def ask(self, path: str, **body: Any) -> Any:
        async with self.http.post(path, json=body) as response:
            answer = await response.json()
            assert response.status == 200, answer
            return answer


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    checkpoint: Path = tmp_path_factory.mktemp("tokens") / "random"
    write_random_checkpoint(checkpoint)
    vision_settings = VisionSettings(
        checkpoint=checkpoint,
        preprocess_worker_count=1,
        torch=VisionTorchOptions(device="cpu", dtype="float32", thread_count=1),
    )
    llm_settings = LLMSettings(
        checkpoint=checkpoint,
        kv_cache_byte_count=32 * MIB,
        torch=LLMTorchOptions(device="cpu", thread_count=1),
    )
    async with AsyncExitStack() as exits:
        vision = await exits.enter_async_context(running_vision(vision_settings))
        llm = await exits.enter_async_context(running_llm(llm_settings))
        settings = GatewaySettings(port=0, drain_seconds=0, vision_address=vision, llm_address=llm)
        port = await exits.enter_async_context(running_gateway(settings))
        http = aiohttp.ClientSession(f"http://127.0.0.1:{port}")
        yield Client(await exits.enter_async_context(http))


async def test_a_chat_is_counted_as_it_is_answered(client: Client) -> None:
    parts: list[dict[str, Any]] = [
        {
            "type": "image_url",
            "image_url": {"url": f"data:image/png;base64,{base64.b64encode(image).decode()}"},
        }
        for image in (WIDE, SMALL)
    ]
    parts[1]["image_url"]["detail"] = "low"
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [*parts, {"type": "text", "text": "Which is wider?"}]},
    ]
    counted = await client.ask("/tokenize", messages=messages, return_token_strs=True)
    answer = await client.ask("/v1/chat/completions", messages=messages, max_tokens=1)
    assert counted["count"] == answer["usage"]["prompt_tokens"]
    assert len(counted["tokens"]) == len(counted["token_strs"]) == counted["count"]
    image_token_count = counted["token_strs"].count("<IMG_CONTEXT>")
    assert image_token_count == answer["usage"]["prompt_tokens_details"]["image_tokens"]
    text = await client.ask("/detokenize", tokens=counted["tokens"])
    assert text["prompt"] == "".join(counted["token_strs"])
    assert "Which is wider?" in text["prompt"]


async def test_a_text_and_its_tokens_are_one_prompt(client: Client) -> None:
    tokens = (await client.ask("/tokenize", prompt=TEXT))["tokens"]
    assert (await client.ask("/detokenize", tokens=tokens)) == {"prompt": TEXT}
    answer = await client.ask("/v1/completions", prompt=[TEXT, tokens], max_tokens=5)
    first, second = answer["choices"]
    assert first["text"] == second["text"]
    assert answer["usage"]["prompt_tokens"] == 2 * len(tokens)
