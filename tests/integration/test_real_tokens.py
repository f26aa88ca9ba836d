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


def best(logprobs: dict[str, Any], index: int) -> tuple[str, float]:
    """Returns the most probable token in a place."""
    top: dict[str, float] = logprobs["top_logprobs"][index]
    return max(top.items(), key=lambda entry: entry[1])


async def test_an_echo_says_of_each_place_what_an_answer_there_says(client: Client) -> None:
    ids = (await client.ask("/tokenize", prompt=TEXT))["tokens"]
    options = {"max_tokens": 1, "logprobs": 1}
    echoed = await client.ask("/v1/completions", prompt=[ids, TEXT], echo=True, **options)
    by_ids, by_text = echoed["choices"]
    assert by_ids["text"] == by_text["text"]
    assert by_ids["text"].startswith(TEXT)
    said = by_ids["logprobs"]
    assert said["tokens"] == by_text["logprobs"]["tokens"]
    assert said["text_offset"] == by_text["logprobs"]["text_offset"]
    assert len(said["token_logprobs"]) == len(ids) + 1
    assert said["token_logprobs"][0] is None
    prompts = [ids[:length] for length in range(1, len(ids) + 1)]
    answers = await client.ask("/v1/completions", prompt=prompts, **options)
    for length, choice in enumerate(answers["choices"], 1):
        token, logprob = best(choice["logprobs"], 0)
        expected_token, expected = best(said, length)
        assert token == expected_token
        assert logprob == pytest.approx(expected, abs=1e-3)


async def test_a_likely_continuation_is_found_out(client: Client) -> None:
    """As lm-eval scores answers: the greedy continuation is so, and another is less likely."""
    ids = (await client.ask("/tokenize", prompt=TEXT))["tokens"]
    (greedy,) = (await client.ask("/v1/completions", prompt=ids, max_tokens=1, logprobs=1))[
        "choices"
    ]
    likely, _ = best(greedy["logprobs"], 0)
    found = {}
    for token_id in range(256):
        scored = await client.ask(
            "/v1/completions", prompt=[*ids, token_id], max_tokens=0, logprobs=0, echo=True
        )
        logprobs = scored["choices"][0]["logprobs"]
        found[logprobs["tokens"][-1]] = logprobs["token_logprobs"][-1]
    assert max(found, key=lambda token: found[token]) == likely
