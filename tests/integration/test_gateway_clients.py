"""The gateway's calls, over real gRPC: tokens, guides, plans of files, and how two begin."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.events import TextDelta
from gateway.memory import HeldFile, Memory
from gateway.services.channel import LLM_SERVICE, VISION_SERVICE, open_channel
from gateway.services.llm import LLMClient, TokenCount
from gateway.services.messages import EmbeddingHeader
from gateway.services.routing import OFFER_COUNT, QueueLimits, Router
from gateway.services.vision import EncodeRequest, TilePlan, VisionClient
from protos.errors import (
    ContextLengthError,
    InvalidArgumentError,
    InvalidImageError,
    ModelMismatchError,
    OverloadedError,
    ServiceError,
    UnavailableError,
)
from protos.identity import EmbeddingId, recipe_digest
from protos.internvl.v1 import llm_pb2, vision_pb2
from protos.process.logs import bind_request_id
from protos.process.settings import MIB
from tests.fakes import ScriptedLLM, ScriptedVision, running_llm, running_vision

SOON = 20.0
CHAT = {"chat.messages": [{"role": "ROLE_USER", "parts": [{"text": "Hi"}]}]}
RECIPE = b"r" * 32


@dataclass
class RefusingLLM(ScriptedLLM):
    """Refuses what it counts and detokenizes, if it has a refusal; says how often it was asked."""

    refusals: list[ServiceError] = field(default_factory=list)
    detokenized: list[llm_pb2.DetokenizeRequest] = field(default_factory=list)

    async def CountTokens(
        self, request: llm_pb2.CountTokensRequest, context: Any
    ) -> llm_pb2.CountTokensResponse:
        response = await super().CountTokens(request, context)
        if self.refusals:
            raise self.refusals.pop(0)
        return response

    async def Detokenize(
        self, request: llm_pb2.DetokenizeRequest, context: Any
    ) -> llm_pb2.DetokenizeResponse:
        self.detokenized.append(request)
        if self.refusals:
            raise self.refusals.pop(0)
        return await super().Detokenize(request, context)


@dataclass
class RefusingVision(ScriptedVision):
    """Refuses plans, if it has a refusal."""

    refusals: list[ServiceError] = field(default_factory=list)

    async def PlanTiles(
        self, request: vision_pb2.PlanTilesRequest, context: Any
    ) -> vision_pb2.PlanTilesResponse:
        response = await super().PlanTiles(request, context)
        if self.refusals:
            raise self.refusals.pop(0)
        return response


@dataclass
class PatientLLM(ScriptedLLM):
    """Answers once its caller has sent all."""

    async def Generate(
        self, requests: AsyncIterator[llm_pb2.GenerateRequest], context: Any
    ) -> AsyncGenerator[llm_pb2.GenerateResponse, None]:
        sent = [request async for request in requests]
        async with aclosing(super().Generate(replayed(sent), context)) as responses:
            async for response in responses:
                yield response


async def replayed(
    requests: Sequence[llm_pb2.GenerateRequest],
) -> AsyncIterator[llm_pb2.GenerateRequest]:
    for request in requests:
        yield request


@dataclass
class CountingVision(ScriptedVision):
    """Counts the responses that gRPC has taken; the header and a chunk are two."""

    taken_count: int = 0
    two_are_taken: asyncio.Event = field(default_factory=asyncio.Event)

    async def EncodeImage(
        self, request: vision_pb2.EncodeImageRequest, context: Any
    ) -> AsyncGenerator[vision_pb2.EncodeImageResponse, None]:
        async with aclosing(super().EncodeImage(request, context)) as responses:
            async for response in responses:
                yield response
                self.taken_count += 1
                if self.taken_count == 2:
                    self.two_are_taken.set()


def router() -> Router:
    return Router(QueueLimits(1.0, 1.0), lambda reason: None)


@asynccontextmanager
async def llm_client(llm: ScriptedLLM) -> AsyncIterator[LLMClient]:
    async with running_llm(llm) as address, open_channel(address, LLM_SERVICE) as channel:
        yield LLMClient(channel, router())


@asynccontextmanager
async def vision_client(vision: ScriptedVision) -> AsyncIterator[VisionClient]:
    async with running_vision(vision) as address, open_channel(address, VISION_SERVICE) as channel:
        yield VisionClient(channel, router())


def deadline() -> float:
    return asyncio.get_running_loop().time() + SOON


def named(path: str) -> str:
    return f"client's {path}"


async def test_a_prompt_is_counted_and_its_tokens_returned() -> None:
    llm = RefusingLLM()
    async with llm_client(llm) as client:
        counted = await client.count_tokens(CHAT | {"image_row_counts": [7]}, named, deadline())
        assert counted == TokenCount(37, 7)
        fields = {"text": "a", "return_tokens": True, "omit_beginning_token": True}
        returned = await client.count_tokens(fields, named, deadline(), "key")
    assert returned.token_ids == tuple(range(30))
    assert returned.tokens[29] == b"29"
    assert llm.counts[0].chat.messages[0].parts[0].text == "Hi"
    assert (llm.counts[1].text, llm.counts[1].omit_beginning_token) == ("a", True)


async def test_tokens_are_written() -> None:
    llm = RefusingLLM()
    async with llm_client(llm) as client:
        assert await client.detokenize([5, 6], named, deadline()) == "5 6"
        # Numbers that the contract does not hold reach the service as ones that it refuses.
        await client.detokenize([10**30, -(10**30)], named, deadline())
    assert list(llm.detokenized[1].token_ids.ids) == [2**31 - 1, -(2**31)]


async def test_a_guide_is_checked_with_its_tools() -> None:
    llm = RefusingLLM()
    async with llm_client(llm) as client:
        fields = {
            "guided.tool_calls": {"choice": "TOOL_CHOICE_REQUIRED"},
            "chat.tools": [{"name": "f", "parameters": "{}"}],
        }
        await client.check_guide(fields, named, deadline(), "key")
        (request,) = llm.guides
        assert request.guided.tool_calls.choice == llm_pb2.TOOL_CHOICE_REQUIRED
        assert request.tools[0].name == "f"
        llm.guide_failure = InvalidArgumentError("bad", field="chat.tools[0].parameters")
        with pytest.raises(InvalidArgumentError, match="bad") as caught:
            await client.check_guide(fields, named, deadline(), "key")
    assert caught.value.field == "client's chat.tools[0].parameters"
    assert len(llm.guides) == 2


async def test_refusals_are_named_as_the_client_would_and_not_asked_for_again() -> None:
    refusal = InvalidArgumentError("bad", field="token_ids.ids[3]")
    llm = RefusingLLM(refusals=[refusal, refusal])
    async with llm_client(llm) as client:
        for call in (
            client.count_tokens({"token_ids.ids": [1]}, named, deadline()),
            client.detokenize([1], named, deadline()),
        ):
            with pytest.raises(InvalidArgumentError, match="bad") as caught:
                await call
            assert caught.value.field == "client's token_ids.ids[3]"
    assert len(llm.counts) == len(llm.detokenized) == 1


async def test_who_is_too_busy_is_asked_again_a_few_times() -> None:
    busy = OverloadedError("busy", retry_after=1)
    llm = RefusingLLM(refusals=[busy])
    async with llm_client(llm) as client:
        assert (await client.count_tokens(CHAT, named, deadline())).prompt_token_count == 30
        assert len(llm.counts) == 2
        llm.refusals = [busy] * 9
        with pytest.raises(OverloadedError, match="busy"):
            await client.count_tokens(CHAT, named, deadline())
    assert len(llm.counts) == 2 + OFFER_COUNT


async def test_nobody_there_is_unavailable() -> None:
    async with open_channel("127.0.0.1:9", LLM_SERVICE) as channel:
        client = LLMClient(channel, router())
        with pytest.raises(UnavailableError):
            await client.check_guide({"guided.regex": "a"}, named, deadline())


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"chat.messages": [{"parts": [{"text": "a" * 5_000_000}]}]}, "chat.messages"),
        ({"text": "a" * 5_000_000}, "text"),
        ({"token_ids.ids": [99_999] * 2_000_000}, "token_ids.ids"),
    ],
    ids=["chat", "text", "token ids"],
)
async def test_a_prompt_that_fits_no_message_is_too_long(
    fields: dict[str, Any], field: str
) -> None:
    llm = RefusingLLM()
    async with llm_client(llm) as client:
        with pytest.raises(ContextLengthError, match="prompt is too long") as counted:
            await client.count_tokens(fields, named, deadline())
        with pytest.raises(ContextLengthError, match="prompt is too long") as generated:
            async with client.generate(fields, named, "", deadline()):
                pass
        assert counted.value.field == generated.value.field == f"client's {field}"
        guided = {"guided.regex": "a", "chat.tools": [{"name": "f" * 5_000_000}]}
        with pytest.raises(ContextLengthError) as checked:
            await client.check_guide(guided, named, deadline())
        assert checked.value.field == "client's chat.tools"
    assert llm.counts == llm.guides == []


def held(content: bytes) -> HeldFile:
    return HeldFile(content, Memory(10**9).share().__enter__())


async def test_a_file_is_planned() -> None:
    vision = RefusingVision()
    async with vision_client(vision) as client:
        file = held(b"a picture")
        plan = await client.plan_tiles_of_file(file, None, RECIPE, named, deadline())
        assert plan == TilePlan(1, 9, 9, 36)  # as scripted: a tile a byte
        await client.plan_tiles_of_file(file, 1, RECIPE, named, deadline())
        assert file.is_held
    assert vision.planned[0] == vision_pb2.PlanTilesRequest(
        image=b"a picture", expected_recipe_sha256=RECIPE
    )
    assert vision.planned[1].max_tile_count == 1


async def test_a_file_that_is_none_is_refused_by_the_clients_name() -> None:
    vision = RefusingVision(refusals=[InvalidImageError("no image", field="image")])
    async with vision_client(vision) as client:
        with pytest.raises(InvalidImageError, match="no image") as caught:
            await client.plan_tiles_of_file(held(b"x"), None, RECIPE, named, deadline())
    assert caught.value.field == "client's image"


async def test_a_replica_of_the_recipe_is_looked_for() -> None:
    vision = RefusingVision()
    async with vision_client(vision) as client:
        with pytest.raises(ModelMismatchError, match="by this recipe any more"):
            await client.plan_tiles_of_file(held(b"x"), None, b"s" * 32, named, deadline())
        assert vision.info_count > 1
        vision.refusals = [ModelMismatchError("replaced", field="expected_recipe_sha256")]
        plan = await client.plan_tiles_of_file(held(b"x"), None, RECIPE, named, deadline())
    assert plan.tile_count == 1


async def test_the_largest_file_is_sent_whole_while_others_go_on() -> None:
    content = bytes(range(256)) * 80_000  # 20 MB
    vision = RefusingVision()
    async with vision_client(vision) as client:
        plans = [
            client.plan_tiles_of_file(held(content), None, RECIPE, named, deadline())
            for _ in range(3)
        ]
        small = client.plan_tiles(90, 60, None, RECIPE, deadline())
        assert len(await asyncio.gather(*plans, small)) == 4
    assert sum(plan.image == content for plan in vision.planned) == 3


async def test_a_call_without_images_is_sent_whole_at_once() -> None:
    bind_request_id("r")
    async with (
        llm_client(PatientLLM()) as client,
        client.generate(CHAT, named, "", deadline()) as generation,
    ):
        assert isinstance(await generation.read(), TextDelta)


async def test_the_next_piece_of_an_embedding_comes_while_one_is_used() -> None:
    bind_request_id("r")
    vision = CountingVision(embedding_byte_count=16 * MIB)
    content = b"a picture"
    embedding_id = EmbeddingId(hashlib.sha256(content).digest(), recipe_digest(RECIPE, 12))
    request = EncodeRequest(held(content), None, RECIPE, embedding_id, 0)
    async with vision_client(vision) as client:
        async with aclosing(client.encode_image(request, named, deadline())) as pieces:
            assert isinstance(await anext(pieces), EmbeddingHeader)
            await asyncio.wait_for(vision.two_are_taken.wait(), SOON)
            await asyncio.sleep(0.2)
            assert vision.taken_count < 5  # of 18
        await asyncio.wait_for(vision.cancelled.wait(), SOON)
